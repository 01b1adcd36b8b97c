"""The losses: chunks change nothing, and DPO is the formula of the paper."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from tiny import recorded

from mini_chat.trainer import losses
from mini_chat.trainer.losses import dpo_loss, token_nll, total_nll


@pytest.mark.parametrize("positions", [0, 1, 6, 7, 20])
def test_chunks_change_neither_the_loss_nor_its_gradients(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(positions, 8), torch.randn(11, 8), torch.randint(0, 11, (positions,))
    weights = torch.rand(positions)
    results = []
    for chunk_logits in (7 * 11, 1 << 24):
        monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_logits)
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        nll = token_nll(h, w, labels)
        (nll * weights).sum().backward()
        results.append((nll, h.grad, w.grad))
    h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    direct = -(h @ w.T).log_softmax(-1)[torch.arange(positions), labels]
    (direct * weights).sum().backward()
    for result in results:
        for given, expected in zip(result, (direct, h.grad, w.grad), strict=True):
            torch.testing.assert_close(given, expected)


def test_products_come_in_few_sizes_whatever_the_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(losses.F, "linear", recorded(sizes, lambda x, w: len(x), losses.F.linear))
    for positions in range(1, 1024, 7):
        assert len(token_nll(torch.randn(positions, 4), torch.randn(10, 4), torch.ones(positions).long())) == positions
    assert set(sizes) == {256, 512, 768, 1024}


def test_no_more_logits_exist_at_once_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 50)
    sizes: list[int] = []
    monkeypatch.setattr(losses.F, "linear", recorded(sizes, lambda x, w: len(x) * len(w), losses.F.linear))
    token_nll(torch.randn(100, 4), torch.randn(10, 4), torch.zeros(100, dtype=torch.long))
    assert len(sizes) == 20 and max(sizes) == 50


@pytest.mark.parametrize("positions", [0, 1, 6, 7, 20])
@pytest.mark.parametrize("chunk_logits", [7 * 11, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_total_is_the_sum_of_the_tokens_losses(
    positions: int, chunk_logits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(positions, 8), torch.randn(11, 8), torch.randint(0, 11, (positions,))
    results = []
    for made in (lambda *given: total_nll(*given), lambda *given: token_nll(*given).sum()):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            total = made(h, w, labels)
        (total / 3).backward()
        assert total.dtype == torch.float32
        results.append((total.detach(), h.grad, w.grad))
    near = 1e-5 if dtype == torch.float32 else 0.02
    for given, expected in zip(*results, strict=True):
        torch.testing.assert_close(given, expected, rtol=near, atol=near)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch before 2.13 has none")
def test_the_total_is_that_of_torchs_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 300 * 500)
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(700, 32), torch.randn(500, 32), torch.randint(0, 500, (700,))
    in_chunks = torch.nn.LinearCrossEntropyOptions()
    theirs = functools.partial(torch.nn.functional.linear_cross_entropy, reduction="sum", options=in_chunks)
    results = []
    for made in (total_nll, theirs):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        total = made(h, w, labels)
        (total / 700).backward()
        results.append((total.detach(), h.grad, w.grad))
    for given, expected in zip(*results, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


def test_what_is_frozen_gets_no_gradient() -> None:
    for wanted in ((True, False), (False, True)):
        hidden, head = torch.randn(7, 4, requires_grad=wanted[0]), torch.randn(5, 4, requires_grad=wanted[1])
        total_nll(hidden, head, torch.arange(7) % 5).backward()
        assert (hidden.grad is not None, head.grad is not None) == wanted


def test_a_label_that_the_model_rules_out_costs_what_it_should() -> None:
    head = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    hidden = torch.tensor([[100.0]], requires_grad=True)
    total = total_nll(hidden, head, torch.tensor([1]))  # p = e^-200, which float32 cannot hold
    total.backward()
    assert total.item() == pytest.approx(200.0)
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(2.0)


def test_the_total_makes_no_logits_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 50)
    sizes: list[int] = []
    made = recorded(sizes, lambda hidden, head, rows: len(hidden) * len(head), losses.chunk_of_logits)
    monkeypatch.setattr(losses, "chunk_of_logits", made)
    hidden = torch.randn(100, 4, requires_grad=True)
    total_nll(hidden, torch.randn(10, 4, requires_grad=True), torch.zeros(100, dtype=torch.long)).backward()
    assert sizes == [50] * 20


def test_dpo_loss_of_a_case_computed_by_hand() -> None:
    # Pair 1: the chosen answer gained 2 nats on the reference and the rejected one lost 1: margin 0.5 · 3 = 1.5,
    # loss -ln σ(1.5) = ln(1 + e^-1.5) = 0.2014. Pair 2: chosen lost 1, rejected gained 1: margin -1, loss
    # ln(1 + e) = 1.3133. Pair 3: as the reference: margin 0, loss ln 2.
    chosen, rejected = torch.tensor([-3.0, -6.0, -2.0]), torch.tensor([-9.0, -4.0, -7.0])
    reference_chosen, reference_rejected = torch.tensor([-5.0, -5.0, -2.0]), torch.tensor([-8.0, -5.0, -7.0])
    loss, margin = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
    assert margin.tolist() == pytest.approx([1.5, -1.0, 0.0])
    assert loss.tolist() == pytest.approx([0.201413, 1.313262, math.log(2)], abs=1e-6)


def test_dpo_gradient_raises_the_chosen_answer_and_lowers_the_rejected() -> None:
    chosen, rejected = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    loss, _ = dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-3.0]), beta=0.2)
    loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.1)  # β · σ(-margin)
    assert float(rejected.grad) == pytest.approx(0.1)
