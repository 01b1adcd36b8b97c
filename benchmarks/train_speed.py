"""Training speed and memory beside plain loops over transformers' own model, taking turns step by step.

    python -m benchmarks.train_speed [--turns 8] [--parts 124m small memory]

Prints the figures and lays them into `benchmarks/results/train.json`, each part's as soon as it is measured.

Loops that are compared run in processes of their own and take turns: a step of each, then the next of each, so that
whatever else the machine is busy with meets them alike. Ratios are taken turn by turn, and their median over all turns
but the first ones is the figure; so are rates. Our loop computes in the `precision` that the machine is fast in, as
`mini-chat pretrain` does by default; its limit is the rate of matrix products in that precision, measured at every
turn. `over_fp32` and `over_bf16` are the ratios to the stock loops in either, whatever the machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.results import table, write

WARM_UP = 2  # turns: the first compiles, the second still fills caches
BESIDE = (("plain", "ours", "packed", "muon", "limit"), ("bf16", "ours", "limit"))
"""Loops that take turns; all at once would not fit into 24 GiB."""
BURN = "while True: pass"


def in_turn(loops: Sequence[str], shape: str, turns: int, busy: int | None = None) -> list[dict[str, Any]]:
    """What processes of `benchmarks.train_loops` print that take turns.

    Args:
        busy: the number of the loop beside whose steps another process takes a core.
    """
    print(f"  {shape}: {', '.join(loops)}", flush=True)
    with ExitStack() as stack:
        processes = []
        for loop in loops:
            command = [sys.executable, "-m", "benchmarks.train_loops", loop, shape, str(turns), "in-turn"]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            processes.append(process)
            said(process)  # one after the other: what they prepare is not measured
        burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", BURN]))
        stack.callback(burner.kill)
        burner.send_signal(signal.SIGSTOP)
        last = [""] * len(loops)
        for _ in range(turns):
            for number, process in enumerate(processes):
                if number == busy:
                    burner.send_signal(signal.SIGCONT)
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
                last[number] = said(process)
                burner.send_signal(signal.SIGSTOP)
        return [json.loads(line) for line in last]


def said(process: subprocess.Popen[str]) -> str:
    """The next line of a process that says it is ready, or its results.

    Raises:
        RuntimeError: it ended without one.
    """
    assert process.stdout
    for line in process.stdout:
        if line.startswith(("ready", "{")):
            return line
    raise RuntimeError(f"{process.args!r} ended with status {process.wait()}")


def rates(result: dict[str, Any]) -> list[float]:
    """Tokens per second at each turn but the first ones."""
    return [result["tokens"] / seconds for seconds in result["seconds"][WARM_UP:]]


def ratio(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The median ratio of two loops' rates."""
    return median(a / b for a, b in zip(rates(one), rates(other), strict=True))


def share(ours: dict[str, Any], limit: dict[str, Any]) -> float:
    """The median share of the limit that our loop reaches."""
    pairs = zip(rates(ours), limit["flops"][WARM_UP:], strict=True)
    return median(rate * limit["flops_per_token"] / flops for rate, flops in pairs)


def speed(shape: str, turns: int) -> dict[str, float | str]:
    """Every loop at a shape, in turn; the small one also beside a process that takes a core."""
    prefix, times = ("", turns) if shape == "124m" else ("small_", 3 * turns)
    beside, in_bf16 = (
        dict(zip(loops, in_turn(loops, shape, times if "plain" in loops else turns), strict=True)) for loops in BESIDE
    )
    over, of_limit = ratio(beside["ours"], beside["plain"]), share(beside["ours"], beside["limit"])
    found = {**{loop: result for loop, result in beside.items() if loop != "limit"}, "bf16": in_bf16["bf16"]}
    figures: dict[str, float | str] = {
        f"{prefix}over_fp32": over,
        f"{prefix}over_bf16": ratio(in_bf16["ours"], in_bf16["bf16"]),
        f"{prefix}share_of_limit": of_limit,
        f"{prefix}packed_short_over_long": ratio(beside["packed"], beside["ours"]),
        f"{prefix}muon_over_adamw": ratio(beside["muon"], beside["ours"]),
        f"{prefix}limit_flops": median(beside["limit"]["flops"]),
        "precision": beside["limit"]["precision"],
        **{f"{shape}_{loop}_tokens_per_s": median(rates(result)) for loop, result in found.items()},
    }
    if shape == "small":
        alone, shared = in_turn(("ours", "ours"), "small", 2 * turns, busy=1)
        figures["small_shared_core"] = ratio(shared, alone)
    print(f"  {shape}: {over:.2f} times the plain loop, {of_limit:.0%} of the limit", flush=True)
    return figures


def memory(turns: int) -> dict[str, float | str]:
    """Peak memory of our loop and of the plain one at 8 × 1,024 tokens."""
    peaks = {loop: in_turn((loop,), "124m-memory", min(turns, 3))[0]["peak_bytes"] for loop in ("plain", "ours")}
    return {
        "peak_over_plain": peaks["ours"] / peaks["plain"],
        "peak_bytes": peaks["ours"],
        "plain_peak_bytes": peaks["plain"],
    }


PARTS = ("124m", "small", "memory")


def measure(turns: int = 8, parts: Sequence[str] = PARTS) -> dict[str, float | str]:
    """Each of the parts."""
    figures: dict[str, float | str] = {}
    for part in parts:
        figures |= memory(turns) if part == "memory" else speed(part, turns)
        write("train", figures, "train_speed")  # what is measured stays, whatever becomes of the next
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="steps that each loop takes (default 8)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args()
    print(table(measure(options.turns, options.parts)))
