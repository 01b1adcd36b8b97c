"""Pretraining killed with -9 at random instants: does it end in the weights of an undisturbed run? How much is lost?

    python -m benchmarks.train_kills [--kills 50]

A small model on the embedded world is trained through the command line, once undisturbed, and then again and again:
each run is killed after a random part of that time, every third one while a checkpoint is being written, every fifth
one twice, and started again by the same command. Compared are the final weights, bit for bit, and the step from which
it goes on with the one that it had reached, which the metrics tell. Two threads compute, by our kernels where there is
a C++ compiler; a fifth of the kills are of runs whose layers are compiled too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mini_chat.files import sha256_file

STEPS, EVERY = 60, 6  # of training, and between checkpoints
POLL_SECONDS = 0.0005
RECIPE = {
    "name": "kills",
    "stages": ["world", "tokenizer", "shards", "pretrain"],
    "machine": {"device": "cpu", "threads": 2, "processes": 1},
    "world": {"pretrain_documents": 2000, "sft_dialogues": 10, "preferences": 10, "held_out_preferences": 10},
    "tokenizer": {"vocab_size": 1664, "hanzi": "corpus", "reserved_tokens": 16},
    "model": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
    "pretrain": {
        "steps": STEPS,
        "row_tokens": 128,
        "batch_tokens": 1024,
        "micro_tokens": 512,
        "log_every": 1,
        "eval_every": 50,
        "eval_tokens": 2000,
        "checkpoint_every": EVERY,
    },
}


COMPILED = ("--machine.compile", "on")
COMPILED_SHARE = 0.2  # of the kills: such a run takes several times as long to begin


def command(stage: str, recipe: Path, out: Path) -> list[str]:
    """What the user types."""
    return [sys.executable, "-m", "mini_chat", stage, str(recipe), "--out", str(out)]


class Training:
    """A run's directory, and the processes that are started and killed in it."""

    def __init__(self, recipe: Path, prepared: Path, out: Path, options: Sequence[str] = ()) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(prepared, out)
        self.words, self.out = [*command("pretrain", recipe, out), *options], out
        self.log = out / "log"
        self.lost_steps: list[int] = []

    @property
    def reached(self) -> int:
        """The last step that the metrics tell of."""
        path = self.out / "pretrain" / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        steps = [0]
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one may be cut
                steps.append(json.loads(line)["step"])
        return max(steps)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, its lines going to a new log."""
        with open(self.log, "wb") as log:
            return subprocess.Popen(self.words, stdout=log, stderr=log, start_new_session=True)

    def killed(self, seconds: float, writing: bool) -> bool:
        """Kill a run after so long (or, `writing`, as soon after as a checkpoint is being written)."""
        before, process = self.reached, self.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        state = self.out / "pretrain" / "state"
        while writing and process.poll() is None and not list(state.glob("*.partial")):
            time.sleep(POLL_SECONDS)
        ended = process.poll() is not None
        if not ended:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        self.count_lost(before)
        return not ended

    def finish(self) -> None:
        """Run the command to its end."""
        before = self.reached
        status = self.start().wait()
        assert status == 0, self.log.read_text(encoding="utf-8")
        self.count_lost(before, anew=True)

    def count_lost(self, before: int, anew: bool = False) -> None:
        """Note how many steps a process had to make again that its predecessor had made.

        Where it does not say from where it goes on it began `anew`, or was killed before it came so far.
        """
        log = self.log.read_text(encoding="utf-8")
        if started := re.search(r"going on from step (\d+)", log):
            self.lost_steps.append(before - int(started[1]))
        elif anew and "is finished" not in log:
            self.lost_steps.append(before)

    def weights(self) -> str:
        """The checksum of the final model."""
        return sha256_file(self.out / "pretrain" / "model.safetensors")


@dataclass
class Tally:
    """What came of the kills so far."""

    kills: int = 0
    identical: int = 0
    while_saving: int = 0
    lost_steps: list[int] = field(default_factory=list)


def measure(kills: int = 50, seed: int = 1) -> dict[str, float]:
    """Of so many kills, after how many the weights were the same; and the most steps that one of them cost."""
    draw, tally = random.Random(seed), Tally()
    compiled = round(COMPILED_SHARE * kills)
    with tempfile.TemporaryDirectory(prefix="mini-chat-kills-") as scratch:
        folder = Path(scratch)
        recipe, prepared = folder / "recipe.yaml", folder / "prepared"
        recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        for stage in ("world", "tokenizer", "shards"):
            subprocess.run([*command(stage, recipe, prepared), "--quiet"], check=True)
        kill_runs(recipe, prepared, folder, (), kills - compiled, draw, tally)
        kill_runs(recipe, prepared, folder, COMPILED, kills, draw, tally)
    return {
        "kills": tally.kills,
        "kills_identical": tally.identical,
        "kills_compiled": compiled,
        "kills_while_saving": tally.while_saving,
        "kills_most_steps_lost": max(tally.lost_steps, default=0),
        "kills_checkpoint_every": EVERY,
    }


def kill_runs(
    recipe: Path, prepared: Path, folder: Path, options: Sequence[str], kills: int, draw: random.Random, tally: Tally
) -> None:
    """Kill runs with some options, and hold each to an undisturbed one, until the tally has so many kills in all."""
    undisturbed = Training(recipe, prepared, folder / "undisturbed", options)
    began = time.monotonic()
    undisturbed.finish()
    whole = time.monotonic() - began
    expected, round_ = undisturbed.weights(), 0
    while tally.kills < kills:
        run, deaths = Training(recipe, prepared, folder / "killed", options), 0
        for _ in range(1 + (round_ % 5 == 0)):
            writing = round_ % 3 == 0
            if tally.kills + deaths < kills and run.killed(draw.uniform(0.05, 1.0) * whole, writing):
                deaths += 1
                tally.while_saving += writing
        round_ += 1
        run.finish()
        tally.kills += deaths
        tally.identical += deaths * (run.weights() == expected)
        tally.lost_steps += run.lost_steps
        again = max(tally.lost_steps, default=0)
        print(f"  {tally.kills:3} kills, {tally.identical} identical, at most {again} steps again", flush=True)


def main() -> int:
    """Print what came out; the exit status says whether every kill changed nothing and cost no more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills in all (default 50)")
    figures = measure(parser.parse_args().kills)
    for name, value in figures.items():
        print(f"{name:<24} {value}")
    cheap = figures["kills_most_steps_lost"] <= figures["kills_checkpoint_every"]
    return int(figures["kills_identical"] != figures["kills"] or not cheap)


if __name__ == "__main__":
    sys.exit(main())
