"""How soon our loop has learnt what two other loops have learnt after a quarter of an hour, on real bilingual text.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.train_quality [--quick] [--against plain] [--kept]
    python -m benchmarks.train_quality --plot

The same model (6 layers × 256, vocabulary 6,400), tokenizer, text and machine for all, seconds of training by the
clock; validation and the compiler's first minute are nobody's time.

- plain, 15 minutes: what users of the peers run on a CPU. transformers' `Qwen3ForCausalLM` in float32, AdamW at 5e-4
  with a cosine to a tenth, 32 documents a batch, each padded or cut to 340 tokens.
- strong, 10 minutes: the same model in the precision that is fast on the machine (bf16 autocast, or float32),
  compiled, rows of 512 packed tokens, 8 a batch, AdamW with the best of three learning rates (each tried for a
  minute), a linear warm-up and decay.
- ours, 45 seconds and 5 minutes: `trainer.loop.train` with the model of `config/real-small.yaml`, the settings in OURS,
  found by `benchmarks.trials`, and as many steps as the seconds have.

A loop's bits per byte are those of both languages' held-out documents together: all bits over all bytes. Each loop
validates after every twentieth of its time, or a little more. `reached` is the time of the first of our validations
that is at the other loop's last one or below it; nothing is interpolated. The curves go to
`benchmarks/results/train_curves.json`, and `--plot` draws them.

torch is imported where it is used: the environment is set before, as the command line does it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import train_curves
from benchmarks.results import RESULTS, table, write
from benchmarks.train_curves import Curve
from mini_chat.cli import prepare_environment
from mini_chat.config import Machine, Recipe, load_recipe
from mini_chat.console import say
from mini_chat.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from mini_chat.device import Device

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "bench-quality"
PLAIN_TOKENS, PLAIN_ROWS = 340, 32
ROW_TOKENS, ROWS = 512, 8
OURS = {  # small batches: in so short a time the number of steps counts
    "batch_tokens": 4 * ROW_TOKENS,
    "micro_tokens": 4 * ROW_TOKENS,
    "lr_max": 8e-3,
    "muon_lr_max": 0.02,
    "muon_momentum_warmup_steps": 300,
}
LOOPS = ("plain", "strong")
RATES = (1e-3, 2e-3, 4e-3)
EVAL_ROWS = 60  # of each language
VALIDATIONS = 20  # of a loop, at most, spread evenly over its time
MORE_SEEDS = (2, 3)
"""Of our 45 seconds, for the spread: other first weights, another order. All other figures are of the recipe's seed."""

Step = Callable[[float], None]
"""One optimiser step at so much of the training time (0 to 1)."""


def recipe() -> Recipe:
    """The recipe of the text, the tokenizer and our own settings."""
    return load_recipe(
        ROOT / "config" / "real-small.yaml",
        {
            "out": str(FOLDER),
            "tokenizer.vocab_size": "6400",
            "tokenizer.hanzi": "corpus",
            "tokenizer.min_frequency": "200",
            "pretrain.row_tokens": str(ROW_TOKENS),
        },
    )


def prepared() -> Recipe:
    """The recipe, with its tokenizer and shards made once."""
    from mini_chat.pipeline import run_stages

    run_stages(recipe(), ["tokenizer", "shards"])
    return recipe()


class Corpus:
    """The shards of a recipe, for loops of any kind.

    Args:
        eval_rows: rows of each language that a validation looks at.
    """

    def __init__(self, recipe: Recipe, eval_rows: int = EVAL_ROWS) -> None:
        from mini_chat.data.packing import PackedDocuments
        from mini_chat.data.token_shards import TokenDocuments
        from mini_chat.trainer.pretrain import validation_splits
        from mini_chat.trainer.stage import end_of_document, load_tokenizer, token_bytes

        tokenizer = load_tokenizer(FOLDER / "tokenizer")
        self.recipe, self.eval_rows, self.end = recipe, eval_rows, end_of_document(tokenizer)
        self.documents = TokenDocuments(FOLDER / "shards", "train")
        self.packed = PackedDocuments(self.documents, ROW_TOKENS, recipe.seed, self.end)
        self.validation = validation_splits(self.documents, ROW_TOKENS, self.end)
        self.token_bytes = token_bytes(tokenizer)
        self.tokenizer = tokenizer

    def bits_per_byte(self, hidden: Callable[[Any], Any], head: Tensor) -> float:
        """Of both languages together, given a function from a batch to hidden states."""
        from mini_chat.trainer.losses import token_nll

        bits = size = 0.0
        for packed in self.validation.values():
            rows = min(self.eval_rows, len(packed))
            for first in range(0, rows, ROWS):
                batch = packed.rows(list(range(first, min(first + ROWS, rows))))
                states_BLH, labels = hidden(batch), batch.labels_BL[batch.labels_BL >= 0]
                nll = token_nll(states_BLH[batch.labels_BL.to(head.device) >= 0], head, labels.to(head.device))
                bits += float(nll.sum()) / np.log(2)
                size += float(self.token_bytes[labels.numpy()].sum())
        return bits / size


def stock_model(corpus: Corpus) -> Any:
    """transformers' own model of the shape."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mini_chat.trainer.stage import new_model

    torch.manual_seed(corpus.recipe.seed)
    model = Qwen3ForCausalLM(Qwen3Config(**new_model(corpus.recipe, corpus.tokenizer).config.to_dict())).float()
    return model.train()


def timed(step: Step, seconds: float, validate: Callable[[], float], validations: int) -> dict[str, Any]:
    """Steps until their time is over, which validations are no part of.

    Returns:
        steps, the bpb at the end, and the curve: [seconds, bpb] at each validation.
    """
    spent, steps, curve = 0.0, 0, Curve()
    while spent < seconds:
        began = time.perf_counter()
        step(spent / seconds)
        spent += time.perf_counter() - began
        steps += 1
        if spent >= seconds * (len(curve) + 1) / validations:
            curve.append([spent, validate()])
    return {"steps": steps, "bpb": curve[-1][1], "curve": curve}


def masked(batch: Any) -> dict[str, Tensor]:
    """A packed batch as the stock model takes it."""
    return {
        "input_ids": batch.input_ids_BL,
        "position_ids": batch.position_ids_BL,
        "attention_mask": batch.attention_mask(),
    }


def stock_bits_per_byte(model: Any, corpus: Corpus, device: Device) -> float:
    """Bits per byte of a stock model as it is."""
    import torch

    model.eval()
    with torch.no_grad(), device.autocast():
        value = corpus.bits_per_byte(lambda batch: model.model(**masked(batch)).last_hidden_state, model.lm_head.weight)
    model.train()
    return value


def chosen(**settings: Any) -> Device:
    """The processor, in the precision that it is fast in unless `settings` say otherwise."""
    from mini_chat.device import choose

    return choose(Machine(device="cpu", **settings))


def plain(corpus: Corpus, seconds: float) -> dict[str, Any]:
    """The plain loop for so long, see `timed`."""
    import torch

    device = chosen(precision="fp32")
    model = stock_model(corpus)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    order = iter(np.random.default_rng(corpus.recipe.seed).permutation(len(corpus.documents)))

    def rows() -> Iterator[np.ndarray]:
        for _ in range(PLAIN_ROWS):
            # Its first token is predicted too, as in validation.
            yield np.append(corpus.end, corpus.documents.document(int(next(order))))[:PLAIN_TOKENS]

    def step(progress: float) -> None:
        tokens = np.full((PLAIN_ROWS, PLAIN_TOKENS), corpus.end)
        labels = np.full((PLAIN_ROWS, PLAIN_TOKENS), -100)
        for row, document in enumerate(rows()):
            tokens[row, : len(document)] = labels[row, : len(document)] = document
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress)))
        model(input_ids=torch.from_numpy(tokens), labels=torch.from_numpy(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, seconds, lambda: stock_bits_per_byte(model, corpus, device), VALIDATIONS)


def strong(corpus: Corpus, seconds: float, rate: float, validations: int = VALIDATIONS) -> dict[str, Any]:
    """The strong loop for so long at a learning rate, see `timed`."""
    import torch
    import torch.nn.functional as F

    device = chosen()
    model = stock_model(corpus)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), fused=True)
    compiled = torch.compile(model, dynamic=False)
    place = 0

    def step(progress: float) -> None:
        nonlocal place
        batch = corpus.packed.batch(place, ROWS)
        place += ROWS
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, progress / 0.02, (1 - progress) / 0.5)
        with device.autocast():
            logits = compiled(**masked(batch)).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch.labels_BL.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # the compiler's time, at a learning rate of 0
        step(0.0)
    result = timed(step, seconds, lambda: stock_bits_per_byte(model, corpus, device), validations)
    return {**result, "rate": rate, "precision": device.precision}


def ours(corpus: Corpus, seconds: float, steps_per_second: float = 0.0) -> dict[str, Any]:
    """Our loop with as many steps as the time has; a short run tells how many those are.

    Returns:
        bpb at the end, steps, seconds taken, and the curve: [seconds, bpb] at each validation.
    """
    import tempfile

    from mini_chat.trainer.attention import packed_attention
    from mini_chat.trainer.language_modelling import LanguageModelling
    from mini_chat.trainer.loop import run_packed, train
    from mini_chat.trainer.stage import new_model

    class Task(LanguageModelling):
        """Validates on both languages together, and on the clock."""

        def validate(self, model: Any) -> dict[str, float]:
            with packed_attention(model, device):
                return {
                    "bpb": corpus.bits_per_byte(lambda batch: run_packed(model, batch).hidden_BLH, model.lm_head.weight)
                }

    device = chosen(compile="on")
    steps = max(20, round(seconds * steps_per_second)) if steps_per_second else 20
    settings = corpus.recipe.pretrain.model_copy(
        update={
            "steps": steps,
            **OURS,
            "log_every": 1,
            "eval_every": math.ceil(steps / VALIDATIONS) if steps_per_second else 1 << 30,
            "checkpoint_every": 1 << 30,
            "checkpoint_minutes": 1e9,
            "sample_every": 0,
        }
    )
    model = new_model(corpus.recipe, corpus.tokenizer)
    task = Task("pretrain", corpus.packed, {}, corpus.token_bytes, corpus.eval_rows, ROWS)
    with tempfile.TemporaryDirectory() as scratch:
        train(model, task, settings, Path(scratch), device, {})
        records = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]
    spent: dict[int, float] = {
        record["step"]: record["train_seconds"] for record in records if "train_seconds" in record
    }
    compiling = spent[1] - (spent[steps] - spent[2]) / max(1, steps - 2)  # what the first step took beyond a usual one
    curve = [[spent[record["step"]] - compiling, record["valid_bpb"]] for record in records if "valid_bpb" in record]
    return {"bpb": curve[-1][1], "steps": steps, "seconds": spent[steps] - compiling, "curve": curve}


def reached(curve: Curve, target: float) -> float | str:
    """When a curve first is at the target [seconds]."""
    return next((seconds for seconds, bpb in curve if bpb <= target), "never")


def latest(times: list[float | str]) -> float | str:
    """The last of some times, or "never"."""
    return "never" if "never" in times else max(times, key=float)


def measure(scale: float = 1.0, against: Sequence[str] = LOOPS, kept: bool = False) -> dict[str, float | str]:
    """The figures; `scale` shortens everything, to see that it runs, and then the curves are not kept.

    Args:
        kept: run our loop alone, beside what the others came to when they last ran.
    """
    prepare_environment()
    corpus = Corpus(prepared(), EVAL_ROWS if scale > 0.1 else 1)
    trial = ours(corpus, 0)
    rate = (trial["steps"] - 1) / trial["seconds"]
    earlier = read_json(RESULTS / "train.json") if kept else {}
    figures: dict[str, float | str] = {}
    curves: dict[str, Curve] = {}
    if "plain" in against:
        short = ours(corpus, 45 * scale, rate)
        say(f"ours, 45 s: {short['bpb']:.3f}")
        seeds = [short]
        for seed in MORE_SEEDS:
            other = Corpus(corpus.recipe.model_copy(update={"seed": seed}), corpus.eval_rows)
            seeds.append(ours(other, 45 * scale, rate))
            say(f"ours, 45 s, seed {seed}: {seeds[-1]['bpb']:.3f}")
        curves["ours_45s"] = short["curve"]
        target = float(earlier.get("plain_15min_bpb", math.nan))
        if not kept:
            result = plain(corpus, 900 * scale)
            say(f"plain: {result['bpb']:.3f}")
            target, curves["plain"] = result["bpb"], result["curve"]
            figures |= {"plain_15min_bpb": target, "plain_15min_steps": result["steps"]}
        figures |= {
            "plain_15min_reached_s": reached(short["curve"], target),
            "plain_15min_reached_latest_s": latest([reached(one["curve"], target) for one in seeds]),
            "ours_45s_spread": max(one["bpb"] for one in seeds) - min(one["bpb"] for one in seeds),
            "ours_45s_bpb": short["bpb"],
            "ours_45s_seconds": short["seconds"],
        }
    if "strong" in against:
        long = ours(corpus, 300 * scale, rate)
        say(f"ours, 300 s: {long['bpb']:.3f}")
        curves["ours_5min"] = long["curve"]
        target = float(earlier.get("strong_10min_bpb", math.nan))
        if not kept:
            tried = [strong(corpus, 60 * scale, lr, validations=1) for lr in RATES]
            best = min(tried, key=lambda result: result["bpb"])
            result = strong(corpus, 600 * scale, best["rate"])
            say(f"strong: {result['bpb']:.3f} at {best['rate']:g}")
            target, curves["strong"] = result["bpb"], result["curve"]
            figures |= {
                "strong_10min_bpb": target,
                "strong_10min_steps": result["steps"],
                "strong_rate": best["rate"],
                "strong_precision": result["precision"],
            }
        figures |= {
            "strong_10min_reached_s": reached(long["curve"], target),
            "ours_5min_bpb": long["bpb"],
            "ours_5min_seconds": long["seconds"],
        }
    if scale == 1.0:
        train_curves.write(curves)
    return figures


def main() -> int:
    """Measure and print, or draw what was measured; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the time, to see that it runs")
    parser.add_argument("--plot", action="store_true", help="measure nothing, draw the curves that were measured")
    parser.add_argument("--kept", action="store_true", help="run ours alone, beside what the others last came to")
    parser.add_argument("--against", choices=LOOPS, help="beside one of the two loops only, and keep that")
    options = parser.parse_args()
    if options.plot:
        return train_curves.draw()
    if not os.environ.get("MINI_CHAT_DATA"):
        print("train_quality: error: say where the text is: set MINI_CHAT_DATA to its folder", file=sys.stderr)
        return 2
    against = [options.against] if options.against else LOOPS
    figures = measure(0.01 if options.quick else 1.0, against, options.kept)
    print(table(figures))
    if (options.against or options.kept) and not options.quick:
        print(write("train", figures, "train_quality"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
