"""One training by one process and by two under torchrun: how far apart are the loss curves?

    python -m benchmarks.train_processes [--steps 40]

The same small model on the embedded world, through the command line, in float32: alone, as two copies (DDP), and in
two shards (FSDP2). What is told is the largest difference of a step's loss, as a part of it. With AdamW it is rounding;
Muon orthogonalises in bfloat16, eight bits, where a matrix in another batch of products is rounded differently. A step
is three micro-batches of one process, and two of each of two, so the sums are not the same by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.train_kills import RECIPE, command

ALONE = [sys.executable, "-m", "mini_chat"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mini_chat"]
SPREADS = {"": (TWO, "ddp"), "_sharded": (TWO, "fsdp")}


def losses(words: list[str], recipe: Path, prepared: Path, out: Path, *options: str) -> list[float]:
    """The loss of every step of a run."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(prepared, out)
    words = [*words, "pretrain", str(recipe), "--out", str(out), "--quiet", "--machine.precision", "fp32", *options]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = (out / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


def measure(steps: int = 40) -> dict[str, float]:
    """The differences of DDP and FSDP2 from one process, with AdamW and with Muon."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="mini-chat-processes-") as scratch:
        folder = Path(scratch)
        recipe, prepared = folder / "recipe.yaml", folder / "prepared"
        recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        for stage in ("world", "tokenizer", "shards"):
            subprocess.run([*command(stage, recipe, prepared), "--quiet"], check=True)
        for optimizer, ending in (("adamw", ""), ("muon", "_muon")):
            options = ["--pretrain.steps", str(steps), "--pretrain.optimizer", optimizer]
            options += ["--pretrain.batch_tokens", "1536", "--pretrain.micro_tokens", "512"]
            one = losses(ALONE, recipe, prepared, folder / "one", *options)
            for name, (words, parallel) in SPREADS.items():
                two = losses(words, recipe, prepared, folder / "two", *options, "--machine.parallel", parallel)
                apart = max(abs(ours - theirs) / ours for ours, theirs in zip(one, two, strict=True))
                figures[f"two_process_loss_difference{name}{ending}"] = apart
    return figures


def main() -> int:
    """Print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (default 40)")
    for name, value in measure(parser.parse_args().steps).items():
        print(f"{name:<44} {value:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
