"""Counts from the shape alone are those of the real model."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.config import Model
from mini_chat.model import SLMConfig, SLMForCausalLM
from mini_chat.plan.parameters import attention_flops_per_token, count, keys_seen
from mini_chat.trainer.optimizer import is_hidden_matrix
from mini_chat.trainer.progress import training_flops_per_token


def on_paper(model: Model, vocab_size: int) -> SLMForCausalLM:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return SLMForCausalLM(SLMConfig(**model.model_dump(exclude={"rope_theta"}), vocab_size=vocab_size))


@st.composite
def shapes(draw: st.DrawFn) -> Model:
    """Any shape that a recipe may ask for, small enough to be made quickly."""
    groups, keys = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * keys
    own_width = draw(st.booleans())
    experts = draw(st.sampled_from([0, 0, 1, 2, 5]))
    return Model(
        hidden_size=heads * 2 * draw(st.integers(1, 12)),
        intermediate_size=draw(st.integers(1, 90)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=2 * draw(st.integers(1, 20)) if own_width else None,
        tie_word_embeddings=draw(st.booleans()),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)) if experts else 2,
        moe_intermediate_size=draw(st.integers(1, 40)),
    )


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(2, 400))
def test_counts_are_the_models(shape: Model, vocab_size: int) -> None:
    model, counted = on_paper(shape, vocab_size), count(shape, vocab_size)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def of(*words: str) -> int:
        return sum(size for name, size in sizes.items() if any(word in name for word in words))

    assert counted.total == sum(sizes.values())
    assert counted.embedding == of("embed_tokens")
    assert counted.head == of("lm_head")
    assert counted.attention == of("_proj.weight") - of("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert counted.router == of("mlp.gate.weight")
    assert counted.feed_forward == of(".mlp.") - counted.router
    assert counted.norms == of("norm")
    hidden = [p.numel() for name, p in model.named_parameters() if is_hidden_matrix(name, p)]
    assert counted.hidden_matrices == sum(hidden)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(2, 400))
def test_work_per_token_is_what_the_loop_counts(shape: Model, vocab_size: int) -> None:
    expected = training_flops_per_token(on_paper(shape, vocab_size))
    assert abs(count(shape, vocab_size).training_flops_per_token - expected) <= 1e-9 * expected


@given(shapes(), st.integers(2, 400))
def test_all_experts_that_work_make_a_model_without_idle_ones(shape: Model, vocab_size: int) -> None:
    busy = shape.model_copy(update={"num_experts_per_tok": shape.num_experts or 1})
    counted = count(busy, vocab_size)
    assert counted.active == counted.total
    assert count(shape, vocab_size).active <= counted.total


def test_attention_sees_half_of_its_document_on_average() -> None:
    lengths = [1, 2, 3, 8, 16]
    for row_tokens in lengths:
        seen = sum(range(1, row_tokens + 1)) / row_tokens
        assert keys_seen(row_tokens) == seen
    assert keys_seen(1024, 100) == keys_seen(100) < keys_seen(1024) == keys_seen(1024, 5000)


def test_attentions_work_is_that_of_its_products() -> None:
    shape = Model(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    row_tokens = 10
    pairs = sum(range(1, row_tokens + 1))
    products = 3 * 2  # two products forward, each twice backward
    flops = 3 * 4 * 16 * 2 * products * pairs
    assert attention_flops_per_token(shape, keys_seen(row_tokens)) * row_tokens == flops
