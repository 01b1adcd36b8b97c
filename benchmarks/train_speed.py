"""Training speed and memory beside plain loops over transformers' own model, each in a process of its own, in turn.

    python -m benchmarks.train_speed [--rounds 3]

Prints the figures and lays them into `benchmarks/results/train.json`.

Rates are medians over the steps of a process but the first two; ratios are taken round by round, and their median is
the figure. Our loop computes in the `precision` that the machine is fast in, as `mini-chat pretrain` does by default,
and its limit is the rate of matrix products in that precision, the better of two measured right before and right
after it. `over_fp32` and `over_bf16` are the ratios to the stock loops in either, whatever the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks.results import table, write

STEPS = {"plain": 4, "bf16": 5, "ours": 8, "packed": 8, "muon": 5}
WARM_UP = 2  # steps: the first compiles, the second still fills caches
BURN = "while True: pass"


def process(*words: str) -> dict[str, Any]:
    """What a process of `benchmarks.train_loops` prints."""
    command = [sys.executable, "-m", "benchmarks.train_loops", *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def run(loop: str, shape: str, steps: int) -> dict[str, float]:
    """Tokens per second and peak memory of one process."""
    result = process(loop, shape, str(steps))
    seconds = median(result["seconds"][WARM_UP:] or result["seconds"])
    return {"rate": result["tokens"] / seconds, "peak_bytes": result["peak_bytes"]}


def measure(rounds: int = 3) -> dict[str, float | str]:
    """Every loop of every shape, in turn."""
    rates: dict[str, list[float]] = {}
    limits: dict[str, list[dict[str, Any]]] = {"124m": [], "small": []}
    for number in range(rounds):
        for shape, limits_there in limits.items():
            for loop in STEPS:
                steps = STEPS[loop] if shape == "124m" else 4 * STEPS[loop] if loop in {"plain", "bf16"} else 20
                around = [process("limit", shape)] if loop == "ours" else []
                rates.setdefault(f"{shape} {loop}", []).append(run(loop, shape, steps)["rate"])
                if around:
                    around.append(process("limit", shape))
                    limits_there.append(max(around, key=lambda limit: limit["flops"]))
        burner = subprocess.Popen([sys.executable, "-c", BURN])
        try:
            rates.setdefault("small shared", []).append(run("ours", "small", 20)["rate"])
        finally:
            burner.kill()
            burner.wait()
        print(f"  round {number + 1}: " + ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items()))

    def ratio(one: str, other: str) -> float:
        return median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    def share_of_limit(shape: str) -> float:
        pairs = zip(rates[f"{shape} ours"], limits[shape], strict=True)
        return median(rate * limit["flops_per_token"] / limit["flops"] for rate, limit in pairs)

    peaks = {loop: run(loop, "124m-memory", 3)["peak_bytes"] for loop in ("plain", "ours")}
    return {
        "over_fp32": ratio("124m ours", "124m plain"),
        "over_bf16": ratio("124m ours", "124m bf16"),
        "precision": limits["124m"][0]["precision"],
        "share_of_limit": share_of_limit("124m"),
        "packed_short_over_long": ratio("124m packed", "124m ours"),
        "muon_over_adamw_2048_tokens_a_step": ratio("124m muon", "124m ours"),
        "small_over_fp32": ratio("small ours", "small plain"),
        "small_over_bf16": ratio("small ours", "small bf16"),
        "small_share_of_limit": share_of_limit("small"),
        "small_shared_core": ratio("small shared", "small ours"),
        "peak_over_plain": peaks["ours"] / peaks["plain"],
        "peak_bytes": peaks["ours"],
        "plain_peak_bytes": peaks["plain"],
        "limit_flops": median(limit["flops"] for limit in limits["124m"]),
        **{f"{name.replace(' ', '_')}_tokens_per_s": median(values) for name, values in rates.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that each loop is run (default 3)")
    figures = measure(parser.parse_args().rounds)
    print(table(figures))
    print(write("train", figures, "train_speed"))
