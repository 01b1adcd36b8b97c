"""Attention over packed rows: blocks and `sdpa` say the same."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import recorded, tiny_model
from torch import Tensor

from mini_chat.data.packing import Batch
from mini_chat.device import Device
from mini_chat.trainer import attention
from mini_chat.trainer import block_attention as block_attention_module
from mini_chat.trainer.attention import BLOCKS, packed_attention
from mini_chat.trainer.loop import labelled, run_packed


def packed_batch(vocab_size: int) -> Batch:
    """Two rows: documents of 5, 3 and 4 positions; one of 10 and two of padding."""
    ids = torch.tensor([[0] * 5 + [1] * 3 + [2] * 4, [3] * 10 + [-1] * 2])
    positions = torch.tensor([[*range(5), *range(3), *range(4)], [*range(10), 0, 0]])
    tokens = torch.randint(0, vocab_size, ids.shape, generator=torch.Generator().manual_seed(0))
    return Batch([0, 1, 2, 3], tokens, tokens, positions, ids)


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 1}])
def test_the_fast_function_and_sdpa_give_the_same_output_and_gradients(shape: dict[str, int], device: Device) -> None:
    model = tiny_model(**shape)
    batch = packed_batch(model.config.vocab_size)
    outputs, gradients = [], []
    for fast in (True, False):
        model.zero_grad()
        if fast:
            with packed_attention(model, device):
                assert model.config._attn_implementation == BLOCKS
                hidden = run_packed(model, batch).hidden_BLH
        else:
            hidden = run_packed(model, batch).hidden_BLH
        real = hidden[batch.document_ids_BL >= 0]
        real.square().sum().backward()
        outputs.append(real.detach())
        gradients.append([p.grad.clone() for p in model.model.layers.parameters() if p.grad is not None])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=12), min_size=1, max_size=3),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    scores_bytes=st.sampled_from([1, 1 << 23]),
)
def test_blocks_see_what_a_mask_shows(lengths: list[list[int]], heads: tuple[int, int], scores_bytes: int) -> None:
    length = 192
    starts = torch.arange(length).repeat(len(lengths), 1)  # what no document covers is padding, which sees itself
    for row, documents in enumerate(lengths):
        at = 0
        for document in documents:
            starts[row, at : at + document] = min(at, length)
            at += document
    queries, keys = heads
    draw = torch.Generator().manual_seed(sum(map(sum, lengths)))
    q, k, v, grad = (
        torch.randn(len(lengths), length, n, 8, generator=draw, dtype=torch.float64)
        for n in (queries, keys, keys, queries)
    )
    sees = (starts[:, :, None] <= torch.arange(length)) & torch.ones(length, length).tril().bool()
    results = []
    for blocks in (True, False):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        if blocks:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(block_attention_module, "SCORES_BYTES", scores_bytes)
                out = block_attention_module.block_attention(q, k, v, starts)
                out.backward(grad)
        else:
            q_BNLD, k_BKLD, v_BKLD = (x.transpose(1, 2) for x in (q, k, v))
            shown = {"attn_mask": sees[:, None], "scale": 1.0, "enable_gqa": True}
            out = F.scaled_dot_product_attention(q_BNLD, k_BKLD, v_BKLD, **shown)  # type: ignore[arg-type]
            out = out.transpose(1, 2)
            out.backward(grad)
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("document", [1024, 200, 30])
def test_in_bfloat16_blocks_are_as_exact_as_bfloat16_is(document: int) -> None:
    starts = torch.arange(1024).expand(2, -1) // document * document
    torch.manual_seed(0)
    exact = [torch.randn(2, 1024, n, 16, dtype=torch.float64) / 2 for n in (4, 2, 2, 4)]
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        *inputs, grad = (x.to(torch.bfloat16).to(dtype) for x in exact)
        inputs = [x.requires_grad_() for x in inputs]
        out = block_attention_module.block_attention(*inputs, starts)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in inputs)])
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None
        assert float((other.double() - one).norm() / one.norm()) < 0.01


def test_short_documents_are_not_multiplied_with_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    monkeypatch.setattr(torch, "bmm", recorded(products, lambda a, b: a.shape[0] * a.shape[1] * b.shape[2], torch.bmm))
    q, k, v = (torch.randn(2, 1024, 4, 8) for _ in range(3))
    sizes = {}
    for document in (1024, 64):
        products.clear()
        block_attention_module.block_attention(q, k, v, torch.arange(1024).expand(2, -1) // document * document)
        sizes[document] = sum(products)
    assert sizes[64] * 7 < sizes[1024] < 0.6 * (2 * 4 * 1024 * (1024 + 8))


def test_the_custom_operation_is_what_autograd_and_the_compiler_take_it_for() -> None:
    q, k, v = (torch.randn(2, 64, n, 8, requires_grad=True) for n in (4, 2, 2))
    starts = torch.arange(64).expand(2, -1) // 16 * 16
    torch.library.opcheck(block_attention_module.block_attention, (q, k, v, starts.contiguous()))


def test_after_the_block_the_model_attends_as_before(device: Device) -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError), packed_attention(model, device):
        raise RuntimeError
    assert model.config._attn_implementation == before


def reference_varlen(
    q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, bounds_q: Tensor, bounds_k: Tensor, *most: int, **options: Any
) -> Tensor:
    """What torch's `varlen_attn` computes, piece by piece; it runs on GPUs only."""
    assert options["window_size"] == (-1, 0) and torch.equal(bounds_q, bounds_k)
    pieces = []
    for start, end in pairwise(bounds_q.unique().tolist()):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (q_TND, k_TKD, v_TKD))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=options["scale"], enable_gqa=True)
        pieces.append(out[0].transpose(0, 1))
    assert most == (len(q_TND) // 2,) * 2
    return torch.cat(pieces)


@pytest.mark.parametrize("knows_groups", [True, False])
def test_flash_attention_is_given_each_document_alone(monkeypatch: pytest.MonkeyPatch, knows_groups: bool) -> None:
    model = tiny_model(num_attention_heads=4, num_key_value_heads=2)
    batch = packed_batch(model.config.vocab_size)
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    if not knows_groups:  # torch 2.11
        monkeypatch.setattr(attention, "KNOWN", attention.KNOWN - {"enable_gqa"})
    found = []
    for name in ("sdpa", attention.FLASH):
        model.config._attn_implementation = name
        model.zero_grad()
        hidden_NH, _ = labelled(run_packed(model, batch).hidden_BLH, batch)
        hidden_NH.square().sum().backward()
        found.append([hidden_NH.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_gpu_with_bf16_takes_flash_attention_and_nothing_else_does() -> None:
    config = tiny_model().config
    config._attn_implementation = "sdpa"
    model = SimpleNamespace(config=config)

    def taken(kind: str, dtype: torch.dtype) -> str:
        return attention.fastest(model, Device(torch.device(kind), dtype, 1))

    assert taken("cuda", torch.bfloat16) == attention.FLASH
    assert taken("cuda", torch.float32) == taken("mps", torch.float32) == "sdpa"
    assert taken("cpu", torch.bfloat16) == taken("cpu", torch.float32) == BLOCKS
