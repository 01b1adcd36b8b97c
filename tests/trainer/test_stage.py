"""What a stage holds to the model that it begins with, before it computes anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_chat.config import Recipe
from mini_chat.errors import UserError
from mini_chat.pipeline import run_stages


@pytest.mark.parametrize("stage, before", [("sft", "pretrain"), ("dpo", "sft")])
def test_rows_over_the_models_limit_and_another_tokenizer_are_told_together(
    stage: str, before: str, make_recipe: Callable[..., Recipe], finished_run: Recipe, tmp_path: Path
) -> None:
    recipe = make_recipe()
    for part in ("tokenizer", before):
        shutil.copytree(finished_run.directory / part, recipe.directory / part)
    start = recipe.directory / before
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    tokens = (start / "tokenizer.json").read_text()
    (start / "tokenizer.json").write_text(tokens.replace("<|reserved_0|>", "<|another|>"))
    assert "<|another|>" in (start / "tokenizer.json").read_text()
    with pytest.raises(UserError) as caught:
        run_stages(recipe, [stage])
    assert str(caught.value).splitlines() == [
        f"{stage}.row_tokens 128 is over the 64 that {start} was made for; lower it",
        f"{start}: trained with another tokenizer than {recipe.directory / 'tokenizer'}; "
        f"run `mini-chat {before}` again",
    ]
    assert not (recipe.directory / stage / "data").exists()


def test_a_machine_and_a_recipe_that_do_not_fit_are_told_before_anything_runs(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(machine={"device": "mps"})
    with pytest.raises(UserError, match="no MPS device"):
        run_stages(recipe, ["pretrain", "sft"])
    assert not recipe.directory.exists()
