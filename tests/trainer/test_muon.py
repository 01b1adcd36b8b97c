"""Muon: torch's own update, for all matrices at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mini_chat.trainer.muon import Muon, orthogonalise

SHAPES = [(8, 8), (12, 8), (8, 12), (8, 8), (8, 12), (3, 20)]


def test_it_makes_the_same_update_as_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.ParameterList(torch.randn(shape, generator=generator) for shape in SHAPES)
    theirs = copy.deepcopy(ours)
    ours_muon = Muon(ours.parameters(), lr=0.1, weight_decay=0.2)
    torch_muon = torch.optim.Muon(theirs.parameters(), lr=0.1, weight_decay=0.2)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        ours_muon.step()
        torch_muon.step()
    for mine, other in zip(ours, theirs, strict=True):
        # Orthogonalised in bfloat16, 8 bits: what is compared moved by about 5 · 0.1 · 0.35 in each place.
        torch.testing.assert_close(mine, other, atol=0.02, rtol=0.02)


def test_singular_values_come_near_one() -> None:
    matrices = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(1)) * 7
    values = torch.linalg.svdvals(orthogonalise(matrices, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_matrix_does_not_move_with_what_it_is_batched_with() -> None:
    matrices = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    alone = orthogonalise(matrices[:1], torch.float32)
    torch.testing.assert_close(orthogonalise(matrices, torch.float32)[:1], alone)


def test_stacked_matrices_move_as_they_would_one_by_one() -> None:
    generator = torch.Generator().manual_seed(3)
    stacks = nn.ParameterList(torch.randn(shape, generator=generator) for shape in [(3, 12, 8), (3, 8, 12), (2, 8, 8)])
    singles = [nn.ParameterList(stack.detach().clone().unbind()) for stack in stacks]
    together = Muon(stacks.parameters(), lr=0.1, weight_decay=0.2, dtype=torch.float32)
    alone = Muon([p for group in singles for p in group], lr=0.1, weight_decay=0.2, dtype=torch.float32)
    for _ in range(3):
        for stack, group in zip(stacks, singles, strict=True):
            stack.grad = torch.randn(stack.shape, generator=generator)
            for single, gradient in zip(group, stack.grad, strict=True):
                single.grad = gradient.clone()
        together.step()
        alone.step()
    for stack, group in zip(stacks, singles, strict=True):
        torch.testing.assert_close(stack, torch.stack(list(group)))


def test_without_a_gradient_nothing_moves_and_nothing_is_remembered() -> None:
    frozen, moved = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    muon = Muon([frozen, moved], lr=0.1)
    moved.grad = torch.eye(4)
    muon.step()
    assert torch.equal(frozen, torch.ones(4, 4)) and frozen not in muon.state
    assert not torch.equal(moved, torch.ones(4, 4))


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([nn.Parameter(torch.ones(4))], lr=0.1)
