"""The depth dial: every size is a model, a larger one is larger, and size 12 is the default."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mini_chat import model_size
from mini_chat.config import Dpo, Model, Recipe, Sft, load_recipe
from mini_chat.model import SLMConfig
from mini_chat.plan.parameters import count

SIZES = range(1, model_size.MAX_SIZE + 1)
VOCAB_SIZE = 32_000


def recipe_of(size: int) -> Recipe:
    return Recipe.model_validate({"model": {"size": size}})


def test_size_12_is_the_default_shape_with_its_rates() -> None:
    recipe = recipe_of(12)
    assert recipe.model.model_dump() == Model().model_dump()
    default = SLMConfig()
    assert all(getattr(default, key) == value for key, value in model_size.shape(12).items())
    assert recipe.pretrain.batch_tokens == 65_536
    assert (recipe.sft, recipe.dpo) == (Sft(), Dpo())


def test_size_0_is_no_size() -> None:
    assert recipe_of(0) == Recipe()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_model_that_can_be_trained(size: int) -> None:
    recipe = recipe_of(size)
    config = SLMConfig(**recipe.model.model_dump(exclude={"rope_theta"}), vocab_size=VOCAB_SIZE)
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (size, size, 64)
    assert config.num_attention_heads >= config.num_key_value_heads * min(3, size)
    assert config.intermediate_size % 64 == 0
    assert abs(config.intermediate_size / config.hidden_size - 8 / 3) <= 32 / config.hidden_size
    rows = recipe.pretrain.batch_tokens / recipe.pretrain.row_tokens
    assert rows in {2**n for n in range(20)}
    for rate in (recipe.pretrain.lr_max, recipe.pretrain.muon_lr_max):
        assert rate * recipe.pretrain.weight_decay < 0.5, "a step leaves the weights their sign"


def test_a_larger_size_is_a_larger_model_and_no_smaller_a_batch() -> None:
    recipes = [recipe_of(size) for size in SIZES]
    counts = [count(recipe.model, VOCAB_SIZE).total for recipe in recipes]
    assert all(smaller < larger for smaller, larger in pairwise(counts))
    batches = [recipe.pretrain.batch_tokens for recipe in recipes]
    assert batches == sorted(batches)


@pytest.mark.parametrize(
    ("size", "heads"), [(1, 1), (2, 1), (4, 1), (6, 2), (7, 1), (8, 2), (9, 3), (12, 4), (20, 5), (24, 8), (32, 8)]
)
def test_three_query_heads_or_more_share_a_key_and_value_head(size: int, heads: int) -> None:
    assert model_size.key_value_heads(size) == heads


@pytest.mark.parametrize("row_tokens", [64, 500, 1024, 2048])
def test_a_batch_is_whole_rows(row_tokens: int) -> None:
    for size in (1, 2, 5, 12, 40):
        batch = model_size.batch_tokens(size, row_tokens)
        assert batch % row_tokens == 0
        assert batch == row_tokens or 0.7 < batch / model_size.BATCH_TOKENS.at(size) < 1.42
    given = {"model.size": "5", "pretrain.row_tokens": str(row_tokens), "pretrain.micro_tokens": str(row_tokens)}
    assert load_recipe(None, given).pretrain.batch_tokens == model_size.batch_tokens(5, row_tokens)


def test_a_power_law_goes_through_its_value_at_12() -> None:
    law = model_size.PowerLaw(0.003, -0.5)
    assert (law.at(12), law.at(3), law.factor(48)) == (0.003, 0.006, 0.5)
    assert law.at(8) == 0.00367, "3 significant digits, as one would write it into a recipe"


def test_rates_of_the_later_stages_follow_their_own_defaults() -> None:
    for size in (3, 27):
        recipe = recipe_of(size)
        for stage, defaults in ((recipe.sft, Sft()), (recipe.dpo, Dpo())):
            assert stage.lr_max == pytest.approx(defaults.lr_max * model_size.LR_MAX.factor(size), rel=5e-3)
            muon = defaults.muon_lr_max * model_size.MUON_LR_MAX.factor(size)
            assert stage.muon_lr_max == pytest.approx(muon, rel=5e-3)
            assert stage.weight_decay == defaults.weight_decay
