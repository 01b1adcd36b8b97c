"""A run whose corpus stages are finished, for tests that train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import Make

from mini_chat.config import Recipe


@pytest.fixture
def prepared(make_recipe: Make, finished_run: Recipe, tmp_path: Path) -> Make:
    """`prepared(pretrain={…}, …)`: a recipe whose tokenizer and shards are there already."""

    def make(name: str = "run", **sections: Any) -> Recipe:
        out = tmp_path / name
        for part in ("tokenizer", "shards"):
            shutil.copytree(finished_run.directory / part, out / part, dirs_exist_ok=True)
        return make_recipe(out, **sections)

    return make
