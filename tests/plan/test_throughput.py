"""The work of a step, held to what torch counts, and how time follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mini_chat.config import Model, Pretrain
from mini_chat.model import SLMConfig, SLMForCausalLM
from mini_chat.plan.machines import TABLE
from mini_chat.plan.memory import Compute
from mini_chat.plan.parameters import count
from mini_chat.plan.rates import TimeRates
from mini_chat.plan.throughput import (
    Work,
    exchange_seconds,
    optimizer_seconds,
    orthogonalisation_flops,
    step_work,
)
from mini_chat.trainer.muon import orthogonalise
from mini_chat.trainer.optimizer import is_hidden_matrix

SHAPE = Model(hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1)
VOCAB_SIZE = 200
H100 = TABLE["h100"]


def work(model: Model = SHAPE, gpus: int = 1, keys: float = 50.0, **settings: Any) -> Work:
    """The work of a step on an H100."""
    given = {"row_tokens": 128, "micro_tokens": 1024, "batch_tokens": 8192} | settings
    parameters = count(model, VOCAB_SIZE)
    return step_work(model, parameters, Pretrain(**given), VOCAB_SIZE, Compute(2, True), H100, keys, gpus)


def made(model: Model) -> SLMForCausalLM:
    return SLMForCausalLM(SLMConfig(**model.model_dump(exclude={"rope_theta"}), vocab_size=VOCAB_SIZE))


def test_products_are_those_that_torch_counts() -> None:
    model, rows, length = made(SHAPE).train(), 2, 64
    tokens = torch.randint(0, VOCAB_SIZE, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    with_weights = sum(flops for kind, flops in counted.items() if "attention" not in str(kind))
    # The first layer's input is an embedding, which has a gradient too: nothing is left out.
    assert with_weights == rows * length * count(SHAPE, VOCAB_SIZE).training_flops_per_token


def test_muons_products_are_those_that_torch_counts() -> None:
    counted = 0
    for name, parameter in made(SHAPE).named_parameters():
        if is_hidden_matrix(name, parameter):
            matrix = parameter.detach() if parameter.shape[0] <= parameter.shape[1] else parameter.detach().T
            with FlopCounterMode(display=False) as counter:
                orthogonalise(matrix[None], torch.float32)
            counted += counter.get_total_flops()
    assert orthogonalisation_flops(SHAPE) == counted


def test_time_is_the_sum_of_works_times_factors() -> None:
    assert Work(1.0, 2.0, 3.0, 4.0, 5.0, 6.0).seconds(TimeRates(1.0, 10.0, 100.0, 1e3, 1e4, 1e5)) == 654321.0


def test_work_grows_with_tokens_and_only_the_optimisers_does_not() -> None:
    one, two = work(batch_tokens=8192), work(batch_tokens=16384)
    assert two.products == 2 * one.products and two.traffic == 2 * one.traffic
    assert two.layer_seconds == 2 * one.layer_seconds and two.optimizer == one.optimizer


def test_larger_micro_batches_cost_fewer_layer_calls() -> None:
    assert work(micro_tokens=512).layer_seconds == 2 * work(micro_tokens=1024).layer_seconds


def test_recomputing_adds_the_layers_forward_pass() -> None:
    plain, again = work(), work(gradient_checkpointing=True)
    parameters = count(SHAPE, VOCAB_SIZE)
    layers = parameters.layer_matrices / parameters.multiplied
    assert again.products / plain.products == pytest.approx(1 + layers / 3)
    assert again.optimizer == plain.optimizer


def test_longer_documents_cost_attention_alone() -> None:
    short, long = work(keys=50.0), work(keys=500.0)
    assert long.attention == pytest.approx(10 * short.attention)
    assert replace(long, attention=0.0) == replace(short, attention=0.0)


def test_devices_share_out_rows_and_muons_products() -> None:
    one, four = work(), work(gpus=4)
    assert four.products == one.products / 4 and one.optimizer / 4 < four.optimizer < one.optimizer


def test_exchange_is_a_ring_all_reduce_of_the_gradients() -> None:
    parameters = count(SHAPE, VOCAB_SIZE)
    assert exchange_seconds(parameters, H100, 1) == 0
    assert exchange_seconds(parameters, H100, 2) == 4 * parameters.total / H100.link_rate
    assert exchange_seconds(parameters, H100, 8) < 2 * 4 * parameters.total / H100.link_rate
    between = 8 * 50e9  # bytes a second, through the eight adapters of a machine
    assert exchange_seconds(parameters, H100, 1000) == pytest.approx(2 * 0.999 * 4 * parameters.total / between)


def test_shards_are_exchanged_three_times_a_micro_batch() -> None:
    parameters = count(SHAPE, VOCAB_SIZE)
    copies = exchange_seconds(parameters, H100, 4)
    assert exchange_seconds(parameters, H100, 4, 1) == pytest.approx(1.5 * copies)
    assert exchange_seconds(parameters, H100, 4, 16) == pytest.approx(24 * copies)


def test_each_of_several_shards_is_updated_by_one_device() -> None:
    parameters = count(SHAPE, VOCAB_SIZE)
    whole, part = (optimizer_seconds(SHAPE, parameters, "adamw", H100, 4, shards) for shards in (1, 4))
    assert part == pytest.approx(whole / 4)
