"""Which tokenizer gives the fewest bits per byte for the same training? Small models, one for each tokenizer.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.tokenizer_training [--flops 1.5e13] [--shape small] [NAME ...]

Fewer tokens for a text are worth nothing by themselves: a larger vocabulary costs more for each token, and has more to
learn. So each tokenizer trains a small model on the same documents at a constant rate, and bits per byte are read off
its curve, on held-out documents that are the same for all,

- after the same work at this shape (`same_flops`), which is the same seconds where the share of the limit is the same;
- after the tokens that the same seconds would give at the shape of the 124M model (`same_flops_at_124m`), where the
  output layer is a quarter of the work rather than most of it.

Work is counted and not timed, so that a busy machine changes nothing but the hours that this takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results import table, write
from benchmarks.tokenizers import ALTERNATIVES, LANGUAGES, REPOSITORY, SHIPPED, Texts, real_texts
from mini_chat.config import Tokenizer
from mini_chat.console import say
from mini_chat.trainer.tokenizer_counts import Text
from mini_chat.trainer.train_tokenizer import HOLDOUT_SHARE, save_tokenizer, train_on

NAMES = ("32k", "words", "16k", "16k_words", "8k", "8k_words", "8105")
EVALUATIONS = 6
HELD_OUT_DOCUMENTS = 300  # of each language


@dataclass(frozen=True)
class Shape:
    """A model, but for its vocabulary, and the batch that it is trained with."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    batch_tokens: int

    @property
    def body(self) -> int:
        """Weights that multiply, but for the head."""
        key_value_width = self.width // self.heads * self.key_value_heads
        return self.layers * self.width * (2 * self.width + 2 * key_value_width + 3 * self.feed_forward)


SHAPES = {
    "small": Shape(4, 128, 352, 4, 2, 2048),  # five minutes of a processor for 1.5e13 FLOPs
    "medium": Shape(6, 384, 1024, 6, 2, 8192),  # half a minute of a large GPU for 1e15
}
LARGE = Shape(12, 768, 2048, 12, 4, 0)  # the 124M model


def flops_per_token(shape: Shape, vocab_size: int) -> float:
    """As the training loop counts: 6 for each weight that multiplies."""
    return 6.0 * (shape.body + shape.width * vocab_size)


def recipe(folder: Path, tokenizer: Path, vocab_size: int, flops: float, shape: Shape) -> dict:
    """Shards and a run of so much work."""
    steps = round(flops / flops_per_token(shape, vocab_size) / shape.batch_tokens)
    return {
        "out": str(folder / tokenizer.name / "run"),
        "stages": ["tokenizer", "shards", "pretrain"],
        "data": {"documents": [{"path": str(folder / f"{name}.jsonl"), "language": name} for name in LANGUAGES]},
        "tokenizer": {"path": str(tokenizer)},
        "shards": {
            "validation_share": HOLDOUT_SHARE,  # of the same hash as here: what no tokenizer was trained on
            "validation_max_documents": HELD_OUT_DOCUMENTS,
            "languages": {"en": 1, "zh": 1},
        },
        "model": {
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        "pretrain": {
            "steps": steps,
            "row_tokens": 512,
            "batch_tokens": shape.batch_tokens,
            "micro_tokens": shape.batch_tokens,
            "lr_max": 4e-3,
            "muon_lr_max": 0.02,
            "decay_ratio": 0.0,
            "eval_every": max(1, steps // EVALUATIONS),
            "eval_tokens": 1_000_000,
            "checkpoint_every": steps,
        },
        "machine": {"threads": 1, "processes": 1, "compile": "off"},
    }


def curve(run: Path, batch_tokens: int) -> tuple[list[float], dict[str, list[float]]]:
    """Tokens, and bits per byte of each language after them."""
    tokens: list[float] = []
    bits: dict[str, list[float]] = {language: [] for language in LANGUAGES}
    for line in (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "valid_bpb_en" in row:
            tokens.append(row["step"] * batch_tokens)
            for language in LANGUAGES:
                bits[language].append(row[f"valid_bpb_{language}"])
    return tokens, bits


def bits_at(tokens: list[float], bits: list[float], at: float) -> float:
    """Read off a curve, straight over the logarithm of the tokens."""
    return float(np.interp(np.log(at), np.log(tokens), bits))


def tokenizer_of(name: str, texts: Texts, folder: Path) -> tuple[Path, int]:
    """The directory of a tokenizer that was trained on the training documents, and its entries."""
    if name == "32k":
        (folder / name).symlink_to(SHIPPED)
        return folder / name, 32_000
    settings: Tokenizer = ALTERNATIVES[name]
    documents = (Text(text, language == "zh", language) for language in LANGUAGES for text in texts.train[language])
    save_tokenizer(train_on(documents, settings).tokenizer, folder / name)
    return folder / name, settings.vocab_size


def one(name: str, texts: Texts, folder: Path, flops: float, shape: Shape) -> dict[str, float]:
    """Bits per byte of one tokenizer's model, by language, and their mean over the languages."""
    tokenizer, vocab_size = tokenizer_of(name, texts, folder)
    path = folder / f"{name}.yaml"
    settings = recipe(folder, tokenizer, vocab_size, flops, shape)
    settings["out"] = str(folder / f"run-{name}")
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    subprocess.run([sys.executable, str(REPOSITORY / "main.py"), "run", str(path)], check=True)
    tokens, bits = curve(folder / f"run-{name}", shape.batch_tokens)
    budgets = {
        "same_flops": flops / flops_per_token(shape, vocab_size),
        "same_flops_at_124m": flops
        / flops_per_token(shape, 32_000)
        * flops_per_token(LARGE, 32_000)
        / flops_per_token(LARGE, vocab_size),
    }
    figures: dict[str, float] = {}
    for budget, at in budgets.items():
        each = {language: bits_at(tokens, bits[language], at) for language in LANGUAGES}
        each["mean"] = sum(each.values()) / len(each)
        figures |= {f"{budget}_bpb_{key}_{name}": value for key, value in each.items()}
    say(f"{name}: tokens {tokens}, bits per byte {bits}")
    say(table(figures))
    return figures


def measure(
    flops: float = 1.5e13, names: Sequence[str] = NAMES, shape: str = "small", at_once: int = 1
) -> dict[str, float | str]:
    """Every tokenizer's bits per byte."""
    texts = real_texts(Path(os.environ["MINI_CHAT_DATA"]))
    figures: dict[str, float | str] = {"shape": shape, "flops": flops}
    with tempfile.TemporaryDirectory(prefix="mini-chat-bench-") as scratch, ThreadPoolExecutor(at_once) as pool:
        folder = Path(scratch)
        for language in LANGUAGES:
            with open(folder / f"{language}.jsonl", "w", encoding="utf-8") as file:
                for text in (*texts.train[language], *texts.held_out[language]):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        for found in pool.map(lambda name: one(name, texts, folder, flops, SHAPES[shape]), names):
            figures |= found
    return figures


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(NAMES), help="tokenizers to train with (default: all)")
    parser.add_argument("--flops", type=float, default=1.5e13, help="work of each run (default 1.5e13)")
    parser.add_argument("--shape", choices=list(SHAPES), default="small", help="of the model (default small)")
    parser.add_argument("--at-once", type=int, default=1, help="tokenizers at the same time (default 1)")
    options = parser.parse_args()
    figures = measure(options.flops, options.names, options.shape, options.at_once)
    print(table(figures))
    print(write("tokenizer_training", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
