"""What pretraining adds to the one loop."""

from __future__ import annotations

from collections.abc import Callable

from runs import pretrain, weights

from mini_chat.config import Recipe
from mini_chat.data.token_shards import TokenDocuments
from mini_chat.pipeline import run_stages


def test_as_many_tokens_as_a_shard_holds_can_mark_a_checkpoint(make_recipe: Callable[..., Recipe]) -> None:
    settings = {"steps": 18, "checkpoint_every": 1000, "keep_checkpoints": 9}
    recipe = make_recipe(shards={"shard_bytes": 4096}, pretrain=settings | {"checkpoint_shards": True})
    run_stages(recipe, ["tokenizer", "shards", "pretrain"])
    tokens = [file["tokens"] for file in TokenDocuments(recipe.directory / "shards", "train").files]
    assert len(tokens) > 1
    every = max(tokens) // 256
    assert 1 < every < 10
    state = recipe.directory / "pretrain" / "state"
    marked = {int(path.name.removeprefix("step-")) for path in state.iterdir()}
    assert marked == {*range(every, 19, every), 18}

    made = (recipe.directory / "pretrain" / "model.safetensors").stat().st_mtime_ns, weights(recipe)
    pretrain(make_recipe(shards={"shard_bytes": 4096}, pretrain=settings))  # when to save is no part of the run's bits
    assert made == ((recipe.directory / "pretrain" / "model.safetensors").stat().st_mtime_ns, weights(recipe))
