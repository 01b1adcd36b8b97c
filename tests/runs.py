"""Runs of the tiny recipe for tests of training: made, killed, broken on purpose, and what they left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from mini_chat.config import Recipe
from mini_chat.pipeline import run_stages
from mini_chat.trainer.language_modelling import LanguageModelling

Make = Callable[..., Recipe]
"""`prepared(name, pretrain={…}, …)`: a recipe whose tokenizer and shards are there already."""


def pretrain(recipe: Recipe) -> None:
    """Run the stage."""
    run_stages(recipe, ["pretrain"])


def weights(recipe: Recipe, stage: str = "pretrain") -> bytes:
    """The bytes of the model that a stage left."""
    return (recipe.directory / stage / "model.safetensors").read_bytes()


def records(recipe: Recipe) -> list[dict[str, Any]]:
    """What metrics.jsonl says."""
    lines = (recipe.directory / "pretrain" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class Killed(BaseException):
    """Stands for SIGKILL where the process must live on; test_crash.py kills processes."""


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Die in the loss of this step."""
    calls = 0
    original = LanguageModelling.weight

    def weight(self: LanguageModelling, batch: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(LanguageModelling, "weight", weight)


def run_killed(recipe: Recipe, step: int) -> None:
    """Run until the given number of steps is done in this process, then die."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, step)
        pretrain(recipe)


def broken_at(monkeypatch: pytest.MonkeyPatch, broken: Callable[[int], bool], factor: float = float("nan")) -> None:
    """The loss of these steps (two micro-batches each) is so many times what it is, in the second micro-batch."""
    calls = 0
    original = LanguageModelling.loss

    def loss(self: LanguageModelling, model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        value, extra = original(self, model, batch)
        return (value * factor if calls % 2 == 0 and broken(calls // 2 - 1) else value), extra

    monkeypatch.setattr(LanguageModelling, "loss", loss)
