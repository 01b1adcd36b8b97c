"""Our attention kernel: what a mask shows, on any number of threads, and a way on where it cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import needs_kernels
from tiny import tiny_model
from torch import Tensor

from mini_chat.config import Machine
from mini_chat.device import choose
from mini_chat.trainer import native_attention
from mini_chat.trainer.attention import BLOCKS, NATIVE, packed_attention
from mini_chat.trainer.block_attention import block_attention

LENGTH = 192
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def starts_of(rows: list[list[int]], length: int = LENGTH) -> Tensor:
    """Where documents of these lengths start, for each position; what none covers is padding, which sees itself."""
    starts = torch.arange(length).repeat(len(rows), 1)
    for row, documents in enumerate(rows):
        at = 0
        for document in documents:
            starts[row, at : at + document] = min(at, length)
            at += document
    return starts


def drawn(shape: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Scaled queries, keys, values and a gradient of (B, L, ·, D)."""
    draw = torch.Generator().manual_seed(sum(shape))
    rows, length, width = shape
    queries, keys = heads
    q, *rest = (torch.randn(rows, length, n, width, generator=draw) for n in (queries, keys, keys, queries))
    return [x.to(dtype) for x in (q / width**0.5, *rest)]


def results(attend: Attend, inputs: Sequence[Tensor], starts: Tensor) -> list[Tensor]:
    """The output and the gradients of an attention function."""
    *qkv, grad = inputs
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    out = attend(q, k, v, starts)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def masked(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    """torch's own attention with a mask of who sees whom."""
    length = q.shape[1]
    sees = (starts[:, :, None] <= torch.arange(length)) & torch.ones(length, length).tril().bool()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None], scale=1.0, enable_gqa=True)
    return out.transpose(1, 2)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=12), min_size=1, max_size=3),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    width=st.sampled_from([16, 48, 64]),
)
def test_the_kernel_sees_what_a_mask_shows(rows: list[list[int]], heads: tuple[int, int], width: int) -> None:
    inputs = drawn((len(rows), LENGTH, width), heads)
    starts = starts_of(rows)
    ours = results(native_attention.native_attention, inputs, starts)
    exact = results(masked, [x.double() for x in inputs], starts)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=2e-5)  # float32: a wrong key is off by 1


@needs_kernels
@pytest.mark.parametrize("document", [1024, 200, 30])
@pytest.mark.parametrize("width", [16, 64])
def test_in_bfloat16_it_is_as_exact_as_bfloat16_is(document: int, width: int) -> None:
    starts = (torch.arange(1024) // document * document).repeat(2, 1)
    inputs = drawn((2, 1024, width), (4, 2), torch.bfloat16)
    ours = results(native_attention.native_attention, inputs, starts)
    exact = results(masked, [x.double() for x in inputs], starts)
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other).norm() / other.norm()) < 0.005


@needs_kernels
def test_large_scores_neither_overflow_nor_lose_the_largest() -> None:
    q, *rest = drawn((1, LENGTH, 16), (2, 1))
    starts = starts_of([[LENGTH]])
    ours, exact = (results(attend, [300 * q, *rest], starts) for attend in (native_attention.native_attention, masked))
    for one, other in zip(ours, exact, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


@needs_kernels
def test_what_is_not_a_number_stays_visible() -> None:
    inputs = drawn((1, LENGTH, 16), (2, 1))
    inputs[0][0, 70] = torch.nan
    for one in results(native_attention.native_attention, inputs, starts_of([[100, 92]])):
        assert one.isnan().any() and not one[0, 100:].isnan().any()


@needs_kernels
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    inputs = drawn((2, LENGTH, 32), (4, 2))
    starts, before = starts_of([[100, 50], [7, 130, 20]]), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(native_attention.native_attention, inputs, starts))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@needs_kernels
def test_views_of_any_strides_are_taken() -> None:
    inputs = drawn((2, LENGTH, 16), (4, 2))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    starts = starts_of([[100], [192]])
    for one, other in zip(
        results(native_attention.native_attention, inputs, starts),
        results(native_attention.native_attention, turned, starts),
        strict=True,
    ):
        assert torch.equal(one, other)


@needs_kernels
def test_the_custom_operation_is_what_autograd_and_the_compiler_take_it_for() -> None:
    q, k, v, _ = drawn((2, 64, 16), (4, 2))
    starts = (torch.arange(64) // 16 * 16).repeat(2, 1)
    torch.library.opcheck(native_attention.attend, (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), starts))


@needs_kernels
def test_a_cpu_takes_the_kernel_unless_told_not_to_compile_or_heads_do_not_suit() -> None:
    def taken(compile: str, head_dim: int) -> str:
        model = tiny_model(head_dim=head_dim)
        with packed_attention(model, choose(Machine.model_validate({"device": "cpu", "compile": compile}))):
            return str(model.config._attn_implementation)

    assert taken("auto", 16) == taken("on", 64) == NATIVE
    assert taken("off", 16) == taken("auto", 8) == BLOCKS


@needs_kernels
def test_what_the_kernel_cannot_read_is_refused() -> None:
    q, k, v, _ = drawn((1, 32, 16), (2, 1))
    starts = torch.zeros(1, 32, dtype=torch.long)
    for qkv in ((q, k.bfloat16(), v), (q[..., :8], k[..., :8], v[..., :8]), (q.double(), k.double(), v.double())):
        with pytest.raises(ValueError, match="attention_forward"):
            native_attention.native_attention(*qkv, starts)


@needs_kernels
def test_the_kernel_and_the_blocks_are_one_attention() -> None:
    inputs = drawn((2, LENGTH, 32), (4, 2))
    starts = starts_of([[100, 92], [7, 130, 20, 35]])
    for one, other in zip(
        results(native_attention.native_attention, inputs, starts),
        results(block_attention, inputs, starts),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
