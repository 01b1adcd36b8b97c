"""Training speed and memory beside plain loops over transformers' own model, each in a process of its own, in turn.

    python -m benchmarks.train_speed [--rounds 3]

Rates are medians over the steps of a process but the first two; ratios are taken round by round, and their median is
the figure. The limit is the rate of bf16 matrix products, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

from benchmarks.results import table

STEPS = {"plain": 4, "bf16": 5, "ours": 8, "packed": 8, "muon": 5}
WARM_UP = 2  # steps: the first compiles, the second still fills caches
BURN = "while True: pass"


def run(loop: str, shape: str, steps: int) -> dict[str, float]:
    """Tokens per second and peak memory of one process."""
    words = [sys.executable, "-m", "benchmarks.train_loops", loop, shape, str(steps)]
    result = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    seconds = median(result["seconds"][WARM_UP:] or result["seconds"])
    return {"rate": result["tokens"] / seconds, "peak_bytes": result["peak_bytes"]}


def limit_flops() -> float:
    """The machine's rate of bf16 matrix products, as the training loop measures it [FLOP/s]."""
    program = "from mini_chat.config import Machine; from mini_chat.device import choose; "
    program += "print(choose(Machine()).matmul_flops)"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def flops_per_token(shape: str) -> float:
    """What the loop counts for a token: 6 for each weight that multiplies."""
    from benchmarks.train_loops import SHAPES
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.trainer.progress import training_flops_per_token

    return training_flops_per_token(SLMForCausalLM(SLMConfig(**SHAPES[shape].model)))


def measure(rounds: int = 3) -> dict[str, float]:
    """Every loop of every shape, in turn."""
    rates: dict[str, list[float]] = {}
    limits = []
    for number in range(rounds):
        for shape in ("124m", "small"):
            for loop in STEPS:
                steps = STEPS[loop] if shape == "124m" else 4 * STEPS[loop] if loop in {"plain", "bf16"} else 20
                rates.setdefault(f"{shape} {loop}", []).append(run(loop, shape, steps)["rate"])
        burner = subprocess.Popen([sys.executable, "-c", BURN])
        try:
            rates.setdefault("small shared", []).append(run("ours", "small", 20)["rate"])
        finally:
            burner.kill()
            burner.wait()
        limits.append(limit_flops())
        print(f"  round {number + 1}: " + ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items()))

    def ratio(one: str, other: str) -> float:
        return median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    work, small_work = flops_per_token("124m"), flops_per_token("small")
    peaks = {loop: run(loop, "124m-memory", 3)["peak_bytes"] for loop in ("plain", "ours")}
    return {
        "over_fp32": ratio("124m ours", "124m plain"),
        "over_bf16": ratio("124m ours", "124m bf16"),
        "share_of_limit": median(r * work / limit for r, limit in zip(rates["124m ours"], limits, strict=True)),
        "packed_short_over_long": ratio("124m packed", "124m ours"),
        "muon_over_adamw_2048_tokens_a_step": ratio("124m muon", "124m ours"),
        "small_over_fp32": ratio("small ours", "small plain"),
        "small_over_bf16": ratio("small ours", "small bf16"),
        "small_share_of_limit": median(r * small_work / x for r, x in zip(rates["small ours"], limits, strict=True)),
        "small_shared_core": ratio("small shared", "small ours"),
        "peak_over_plain": peaks["ours"] / peaks["plain"],
        "peak_bytes": peaks["ours"],
        "plain_peak_bytes": peaks["plain"],
        "limit_flops": median(limits),
        **{f"{name.replace(' ', '_')}_tokens_per_s": median(values) for name, values in rates.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that each loop is run (default 3)")
    print(table(measure(parser.parse_args().rounds)))
