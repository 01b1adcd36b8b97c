"""Many short pretrainings on real bilingual text, to compare settings: one line of JSON for each.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.trials PLAN.json RESULTS.jsonl [--at-once 4]

PLAN.json is a list of objects, each with a `name` and whatever differs from the 6 layers × 256 of
`benchmarks.train_quality`: `tokens`, `seed`, keys of `model` and `pretrain`, a `variant` (see `MODELS` and
`optimizers`). What was
tried with it is in docs/log.md. On a GPU a trial of half a million tokens takes seconds, and several run at once.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.train_quality import EVAL_ROWS, ROW_TOKENS, Corpus, prepared, recipe
from mini_chat.cli import prepare_environment
from mini_chat.config import Machine, Recipe

ROWS_AT_ONCE = 64  # of a forward pass, at most
TOKENS = 500_000


def zero_projections(model: Any) -> None:
    """What writes into the residual stream begins at nothing."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        if hasattr(layer.mlp, "down_proj"):
            layer.mlp.down_proj.weight.data.zero_()


def scaled_embedding(factor: float) -> Callable[[Any], None]:
    """Embeddings that begin larger than the other weights."""

    def scale(model: Any) -> None:
        model.model.embed_tokens.weight.data.mul_(factor)

    return scale


def zero_head(model: Any) -> None:
    """The first logits are all 0."""
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        model.lm_head.weight.data.zero_()


MODELS: dict[str, Callable[[Any], None]] = {
    "zero_projections": zero_projections,
    "zero_head": zero_head,
    **{f"embedding_x{factor}": scaled_embedding(factor) for factor in (5, 10, 25, 50)},
}
"""Changes of a new model."""


def optimizers() -> dict[str, Any]:
    """Other optimisers in the place of Muon."""
    import torch

    from mini_chat.trainer import muon

    class Cautious(muon.Muon):
        """Weight decay only where it goes the way of the update (arXiv:2510.12402)."""

        def _step_alike(self, parameters: list[Any], group: dict[str, Any]) -> None:
            before = [p.detach().clone() for p in parameters]
            super()._step_alike(parameters, {**group, "weight_decay": 0.0})
            for parameter, old in zip(parameters, before, strict=True):
                shrinks = (parameter.detach() - old) * old < 0
                parameter.data.sub_(old * shrinks, alpha=group["lr"] * group["weight_decay"])

    class Normed(muon.Muon):
        """NorMuon (arXiv:2510.05491): rows of the update brought to one mean square over time, norm kept."""

        def _step_alike(self, parameters: list[Any], group: dict[str, Any]) -> None:
            before = [p.detach().clone() for p in parameters]
            super()._step_alike(parameters, {**group, "weight_decay": 0.0})
            for parameter, old in zip(parameters, before, strict=True):
                update = parameter.detach() - old
                state = self.state[parameter]
                square = update.square().mean(dim=1, keepdim=True) / max(group["lr"], 1e-12) ** 2
                if "second_momentum_buffer" not in state:
                    state["second_momentum_buffer"] = torch.zeros_like(square)
                mean = state["second_momentum_buffer"]
                mean.lerp_(square, 0.05)
                normed = update / (mean.sqrt() + 1e-8)
                normed *= update.norm() / normed.norm().clamp(min=1e-12)
                parameter.data.copy_(old * (1 - group["lr"] * group["weight_decay"]) + normed)

    def with_momentum(momentum: float) -> Any:
        return functools.partial(muon.Muon, momentum=momentum)

    return {
        "cautious": Cautious,
        "normed": Normed,
        **{f"momentum_{value}": with_momentum(value) for value in (0.8, 0.85, 0.9, 0.98)},
    }


@contextmanager
def optimizer_of(names: list[str]) -> Iterator[None]:
    """Within the block Muon is the named variant."""
    from mini_chat.trainer import optimizer

    ours = optimizer.Muon
    for name in names:
        optimizer.Muon = optimizers()[name]  # type: ignore[misc]
    try:
        yield
    finally:
        optimizer.Muon = ours  # type: ignore[misc]


def recipe_of(usual: Recipe, trial: dict[str, Any]) -> Recipe:
    """The recipe of `benchmarks.train_quality` with a trial's settings."""
    values = usual.model_dump(exclude_unset=True)
    values["seed"] = trial.get("seed", 1)
    tokens, batch = trial.get("tokens", TOKENS), trial.get("pretrain", {}).get("batch_tokens", 4096)
    if "size" in trial.get("model", {}):
        values["model"] = {"max_position_embeddings": 1024}
    values["model"] = {**values["model"], **trial.get("model", {})}
    rows = trial.get("pretrain", {}).get("row_tokens", ROW_TOKENS)
    values["pretrain"] = {
        **values["pretrain"],
        "batch_tokens": batch,
        "micro_tokens": min(batch, ROWS_AT_ONCE * rows),
        "log_every": 10,
        "eval_every": 1 << 30,
        "checkpoint_every": 1 << 30,
        "checkpoint_minutes": 1e9,
        "sample_every": 0,
        **trial.get("pretrain", {}),
        "steps": max(1, round(tokens / batch)),
    }
    return Recipe.model_validate(values)


def run(corpus: Corpus, trial: dict[str, Any]) -> dict[str, Any]:
    """Train one model; what was asked, and bits per byte of both languages together."""
    from mini_chat.data.packing import PackedDocuments
    from mini_chat.device import choose
    from mini_chat.errors import UserError
    from mini_chat.trainer.attention import packed_attention
    from mini_chat.trainer.language_modelling import LanguageModelling
    from mini_chat.trainer.loop import run_packed, train
    from mini_chat.trainer.stage import new_model

    asked = recipe_of(corpus.recipe, trial)
    settings = asked.pretrain
    device = choose(Machine(compile=trial.get("compile", "off"), threads=trial.get("threads", 0)))

    class Task(LanguageModelling):
        """Validates on both languages together."""

        def validate(self, model: Any) -> dict[str, float]:
            with packed_attention(model, device):
                return {
                    "bpb": corpus.bits_per_byte(
                        lambda batch: run_packed(model, batch.to(device.torch_device)).hidden_BLH, model.lm_head.weight
                    )
                }

    model = new_model(asked, corpus.tokenizer)
    variants = trial["variant"].split("+") if trial.get("variant") else []
    for variant in variants:
        if variant in MODELS:
            MODELS[variant](model)
    data = PackedDocuments(corpus.documents, settings.row_tokens, asked.seed, corpus.end)
    micro_rows = settings.micro_tokens // settings.row_tokens
    task = Task("pretrain", data, {}, corpus.token_bytes, EVAL_ROWS, micro_rows)
    with tempfile.TemporaryDirectory() as scratch, optimizer_of([v for v in variants if v not in MODELS]):
        try:
            outcome = train(model.to(device.torch_device), task, settings, Path(scratch), device, {})  # type: ignore[arg-type]
        except UserError as error:
            return {**trial, "bpb": None, "error": str(error)}
    seconds = round(outcome.seconds, 2)
    return {**trial, "bpb": outcome.validation["bpb"], "tokens": outcome.tokens, "seconds": seconds}


def main() -> int:
    """Run a plan, or one process's part of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--at-once", type=int, default=1, help="trials that run at the same time (default 1)")
    parser.add_argument("--part", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_environment()
    trials = json.loads(options.plan.read_text(encoding="utf-8"))
    if options.part < 0 and options.at_once > 1:
        prepared()
        words = [sys.executable, "-m", "benchmarks.trials", str(options.plan), str(options.results)]
        words += ["--at-once", str(options.at_once), "--part"]
        return max(process.wait() for process in [subprocess.Popen([*words, str(n)]) for n in range(options.at_once)])
    from mini_chat.console import set_quiet

    set_quiet(True)
    corpus = Corpus(prepared() if options.part < 0 else recipe())  # only one process may prepare
    for trial in trials[max(0, options.part) :: options.at_once]:
        line = json.dumps(run(corpus, trial), ensure_ascii=False)
        with open(options.results, "a", encoding="utf-8") as file:  # one write each: lines do not mix
            file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
