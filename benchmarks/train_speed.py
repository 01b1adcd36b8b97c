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
    beside = dict(zip(BESIDE[0], in_turn(BESIDE[0], shape, times), strict=True))
    figures: dict[str, float | str] = {
        f"{prefix}over_fp32": ratio(beside["ours"], beside["plain"]),
        f"{prefix}share_of_limit": share(beside["ours"], beside["limit"]),
        f"{prefix}packed_short_over_long": ratio(beside["packed"], beside["ours"]),
        f"{prefix}muon_over_adamw": ratio(beside["muon"], beside["ours"]),
        f"{prefix}limit_flops": median(beside["limit"]["flops"]),
        "precision": beside["limit"]["precision"],
        **{f"{shape}_{loop}_tokens_per_s": median(rates(beside[loop])) for loop in BESIDE[0] if loop != "limit"},
    }
    keep(figures)
    in_bf16 = dict(zip(BESIDE[1], in_turn(BESIDE[1], shape, turns), strict=True))
    figures |= {
        f"{prefix}over_bf16": ratio(in_bf16["ours"], in_bf16["bf16"]),
        f"{shape}_bf16_tokens_per_s": median(rates(in_bf16["bf16"])),
    }
    keep(figures)
    if shape == "small":
        alone, shared = in_turn(("ours", "ours"), "small", 2 * turns, busy=1)
        figures["small_shared_core"] = ratio(shared, alone)
        keep(figures)
    return figures


def keep(figures: dict[str, float | str]) -> None:
    """Show and write what is measured, so that it stays whatever becomes of the next."""
    print(table(figures), flush=True)
    write("train", figures, "train_speed")


def memory(turns: int) -> dict[str, float | str]:
    """Peak memory of our loop and of the plain one at 8 × 1,024 tokens."""
    peaks = {loop: in_turn((loop,), "124m-memory", min(turns, 3))[0]["peak_bytes"] for loop in ("plain", "ours")}
    plain, ours = peaks["plain"], peaks["ours"]
    figures: dict[str, float | str] = {"peak_over_plain": ours / plain, "peak_bytes": ours, "plain_peak_bytes": plain}
    keep(figures)
    return figures


PARTS = ("124m", "small", "memory")


def measure(turns: int = 8, parts: Sequence[str] = PARTS) -> dict[str, float | str]:
    """Each of the parts."""
    figures: dict[str, float | str] = {}
    for part in parts:
        figures |= memory(turns) if part == "memory" else speed(part, turns)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="steps that each loop takes (default 8)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args()
    measure(options.turns, options.parts)
