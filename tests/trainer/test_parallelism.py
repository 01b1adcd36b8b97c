"""One process's side of parallelism: how gradients are clipped."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_model

from mini_chat.device import Device
from mini_chat.trainer.parallelism import Parallelism


@pytest.fixture
def parallelism(device: Device) -> Parallelism:
    """Of a model whose gradients have norm 5: those of two numbers are 3 and 4, one parameter has none."""
    model = tiny_model()
    _, first, second, *rest = model.parameters()
    for parameter in (first, second, *rest):
        parameter.grad = torch.zeros_like(parameter)
    assert first.grad is not None and second.grad is not None
    first.grad.view(-1)[0], second.grad.view(-1)[0] = 3.0, 4.0
    return Parallelism(model, device)


def gradients(parallelism: Parallelism) -> list[torch.Tensor]:
    return [p.grad.clone() for p in parallelism.model.parameters() if p.grad is not None]


def test_gradients_over_the_limit_are_scaled_down_to_it(parallelism: Parallelism) -> None:
    before = gradients(parallelism)
    assert parallelism.clip_gradients(2.0) == 5.0
    for one, other in zip(before, gradients(parallelism), strict=True):
        torch.testing.assert_close(one * 2 / 5, other, atol=1e-5, rtol=1e-5)


def test_gradients_under_the_limit_stay_bit_for_bit(parallelism: Parallelism) -> None:
    before = gradients(parallelism)
    assert parallelism.clip_gradients(5.5) == 5.0
    assert all(torch.equal(one, other) for one, other in zip(before, gradients(parallelism), strict=True))


def test_a_norm_that_is_no_number_is_told(parallelism: Parallelism) -> None:
    next(p.grad for p in parallelism.model.parameters() if p.grad is not None).view(-1)[0] = math.nan
    assert math.isnan(parallelism.clip_gradients(1.0))
