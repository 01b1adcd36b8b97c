"""Attention over packed documents on a CPU: matrix products of blocks, and only of blocks where someone may look.

In a row of packed documents a query sees from the start of its document to itself. So a block of queries needs the
keys from the block in which its first query's document starts up to its own: causality halves the work, short documents
cut it further. Blocks that need equally many keys, of all rows, are multiplied together in one batched product at the
processor's full rate; those that need many are multiplied one by one, with their keys where they lie. The softmax
between the products runs while their scores are in the cache. Nothing of the size of the scores is kept for the
backward pass, which makes them again (as FlashAttention does, arXiv:2205.14135).

What it brings is in docs/log.md.

Shape suffixes: B rows, L positions of a row, N query heads, K key/value heads, G query heads per key/value head, D head
width; Q blocks of a batch, b positions of a block, C blocks worked on together, W key blocks that each of them
sees, S = W·b keys, of which the last M may be hidden; X = C·K products, Y = G·b rows of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
SHORT_ROW_BLOCK = 32  # of rows under 512 positions
WIDE_WINDOW = 512  # keys: copying so many costs more than a product of their own
SCORES_BYTES = 1 << 23  # of one product: what stays in the cache until the softmax has read it


class Group(NamedTuple):
    """Blocks of queries that see equally many blocks of keys; blocks are counted through all rows of the batch."""

    queries_C: Tensor
    keys_CW: Tensor
    mask_CbM: Tensor
    """0 where a query may look, -inf elsewhere: adding it is several times as fast as filling by a bool mask. Of the
    last M keys of a window; what is before them all queries may see."""


def block_size(length: int) -> int:
    """Positions of a block: a power of two that divides the row, or the whole row where there is none of use."""
    size = BLOCK if length >= 512 else SHORT_ROW_BLOCK
    while length % size:
        size //= 2
    return size if size >= 16 else length


def plan(starts_BL: Tensor, block: int, dtype: torch.dtype) -> list[Group]:
    """Which blocks look at which, in groups.

    Args:
        starts_BL: int64, for each position the first position of its row that it may see.
    """
    rows, length = starts_BL.shape
    per_row = length // block
    starts_Qb = starts_BL.reshape(rows * per_row, block)
    number_Q = torch.arange(rows * per_row)
    own_Q = number_Q % per_row
    first_Q = starts_Qb.amin(dim=1) // block  # starts never fall within a row, so it is the first query's
    width_Q = own_Q - first_Q + 1
    groups = []
    for width in width_Q.unique().tolist():
        queries_C = number_Q[width_Q == width]
        keys_CW = (queries_C - width + 1)[:, None] + torch.arange(width)
        # Places count from the beginning of a block's window; 32 bits, since these tables are made anew at every step.
        start_Cb = (starts_Qb[queries_C] - first_Q[queries_C, None] * block).to(torch.int32)
        seen_from = 0 if start_Cb.any() else (width - 1) * block
        key_M = torch.arange(seen_from, width * block, dtype=torch.int32)
        query_b = torch.arange((width - 1) * block, width * block, dtype=torch.int32)
        after_bM = key_M > query_b[:, None]
        before_CbM = key_M < start_Cb[:, :, None]
        mask_CbM = torch.zeros(before_CbM.shape, dtype=dtype).masked_fill_(before_CbM | after_bM, float("-inf"))
        groups.append(Group(queries_C, keys_CW, mask_CbM))
    return groups


@lru_cache(maxsize=4)
def _planned(data: bytes, rows: int, block: int, dtype: torch.dtype) -> list[Group]:
    return plan(torch.frombuffer(bytearray(data), dtype=torch.int64).view(rows, -1), block, dtype)


def pieces(starts_BL: Tensor, block: int, heads: int, dtype: torch.dtype) -> Iterator[Group]:
    """The groups of a batch, each in pieces whose scores fit SCORES_BYTES, or of one block where windows are wide.

    All layers, and the backward pass, ask for the same batch's groups; they are made once.
    """
    for group in _planned(starts_BL.numpy().tobytes(), len(starts_BL), block, dtype):
        window = group.keys_CW.shape[1] * block
        size = max(1, SCORES_BYTES // (heads * block * window * dtype.itemsize)) if window < WIDE_WINDOW else 1
        for parts in zip(*(tensor.split(size) for tensor in group), strict=True):
            yield Group(*parts)


def _cut_queries(x_BLND: Tensor, block: int, K: int) -> Tensor:
    """Queries, or what goes with each of them, as blocks under the key head that they share: a view (Q, K, G, b, D)."""
    B, L, N, D = x_BLND.shape
    return x_BLND.reshape(B * (L // block), block, K, N // K, D).permute(0, 2, 3, 1, 4)


def _cut_keys(x_BLKD: Tensor, block: int) -> Tensor:
    """Keys or values as blocks, (Q, b, K, D)."""
    B, L, K, D = x_BLKD.shape
    return x_BLKD.reshape(B * (L // block), block, K, D)


def _blocks(x_QKGbD: Tensor, queries_C: Tensor) -> Tensor:
    """What goes with the queries of some blocks, (X, Y, D)."""
    *_, G, b, D = x_QKGbD.shape
    return x_QKGbD[queries_C].reshape(-1, G * b, D)


def _window(x_QbKD: Tensor, keys_CW: Tensor) -> Tensor:
    """The keys (or values) that each block sees, (X, S, D). Those of a single block lie side by side: a view."""
    C, W = keys_CW.shape
    _, b, K, D = x_QbKD.shape
    if C == 1:
        first = int(keys_CW[0, 0])
        return x_QbKD[first : first + W].flatten(0, 1).transpose(0, 1)
    return x_QbKD.transpose(1, 2)[keys_CW].transpose(1, 2).reshape(C * K, W * b, D)


def _add_to_window(total_QbKD: Tensor, keys_CW: Tensor, one_XSY: Tensor, other_XYD: Tensor) -> None:
    """Add a product to the keys (or values) that each block sees."""
    C, W = keys_CW.shape
    _, b, K, D = total_QbKD.shape
    if C > 1:
        part = torch.bmm(one_XSY, other_XYD).to(total_QbKD.dtype).view(C, K, W, b, D)
        total_QbKD.index_add_(0, keys_CW.flatten(), part.permute(0, 2, 3, 1, 4).reshape(C * W, b, K, D))
    elif one_XSY.dtype == total_QbKD.dtype:
        _window(total_QbKD, keys_CW).baddbmm_(one_XSY, other_XYD)
    else:
        _window(total_QbKD, keys_CW).add_(torch.bmm(one_XSY, other_XYD))


def _weights(q_XYD: Tensor, k_XSD: Tensor, mask_CbM: Tensor) -> Tensor:
    """Attention weights of some blocks, (X, Y, S)."""
    C, b, M = mask_CbM.shape
    scores_XYS = torch.bmm(q_XYD, k_XSD.transpose(1, 2))
    scores_XYS.view(C, -1, b, k_XSD.shape[1])[..., -M:].add_(mask_CbM[:, None])
    return torch.softmax(scores_XYS, dim=-1, out=scores_XYS)


@torch.library.custom_op("slm::block_attention", mutates_args=())
def block_attention(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> Tensor:
    """Attention of scaled queries over the keys from `starts_BL` to themselves.

    Args:
        q_BLND, k_BLKD, v_BLKD: of one float dtype, in which products and weights are kept; softmax computes in float32.
        starts_BL: int64, for each position the first one of its row that it may see.

    Returns:
        (B, L, N, D) in the same dtype.
    """
    _, L, N, D = q_BLND.shape
    K, block = k_BLKD.shape[2], block_size(L)
    q_QKGbD = _cut_queries(q_BLND, block, K)
    k_QbKD, v_QbKD = _cut_keys(k_BLKD, block), _cut_keys(v_BLKD, block)
    out_BLND = torch.empty_like(q_BLND, memory_format=torch.contiguous_format)
    out_QKGbD = _cut_queries(out_BLND, block, K)
    for queries_C, keys_CW, mask_CbM in pieces(starts_BL, block, N, q_BLND.dtype):
        weights_XYS = _weights(_blocks(q_QKGbD, queries_C), _window(k_QbKD, keys_CW), mask_CbM)
        out_XYD = torch.bmm(weights_XYS, _window(v_QbKD, keys_CW))
        out_QKGbD[queries_C] = out_XYD.view(-1, K, N // K, block, D)
    return out_BLND


@block_attention.register_fake
def _(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> Tensor:
    return torch.empty(q_BLND.shape, dtype=q_BLND.dtype, device=q_BLND.device)


@torch.library.custom_op("slm::block_attention_backward", mutates_args=())
def block_attention_backward(
    grad_BLND: Tensor, q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, out_BLND: Tensor, starts_BL: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values.

    With weights P, their gradient is dP = dO·Vᵀ and that of the scores dS = P ∘ (dP - rowsum(dO ∘ O)).
    """
    B, L, N, D = q_BLND.shape
    K, block = k_BLKD.shape[2], block_size(L)
    G = N // K
    exact = torch.promote_types(q_BLND.dtype, torch.float32)  # several blocks add to a key's gradient
    delta_BLN1 = (grad_BLND.to(exact) * out_BLND.to(exact)).sum(dim=-1, keepdim=True).to(grad_BLND.dtype)
    q_QKGbD, grad_QKGbD, delta_QKGb1 = (_cut_queries(x, block, K) for x in (q_BLND, grad_BLND, delta_BLN1))
    k_QbKD, v_QbKD = _cut_keys(k_BLKD, block), _cut_keys(v_BLKD, block)
    dq_BLND = torch.empty_like(q_BLND, memory_format=torch.contiguous_format)
    dq_QKGbD = _cut_queries(dq_BLND, block, K)
    dk_QbKD, dv_QbKD = (torch.zeros(x.shape, dtype=exact) for x in (k_QbKD, v_QbKD))
    for queries_C, keys_CW, mask_CbM in pieces(starts_BL, block, N, q_BLND.dtype):
        q_XYD, grad_XYD, delta_XY1 = (_blocks(x, queries_C) for x in (q_QKGbD, grad_QKGbD, delta_QKGb1))
        k_XSD = _window(k_QbKD, keys_CW)
        weights_XYS = _weights(q_XYD, k_XSD, mask_CbM)
        _add_to_window(dv_QbKD, keys_CW, weights_XYS.transpose(1, 2), grad_XYD)
        dscores_XYS = torch.bmm(grad_XYD, _window(v_QbKD, keys_CW).transpose(1, 2))
        dscores_XYS.sub_(delta_XY1).mul_(weights_XYS)
        _add_to_window(dk_QbKD, keys_CW, dscores_XYS.transpose(1, 2), q_XYD)
        dq_QKGbD[queries_C] = torch.bmm(dscores_XYS, k_XSD).view(-1, K, G, block, D)
    return dq_BLND, dk_QbKD.view(B, L, K, D).to(k_BLKD.dtype), dv_QbKD.view(B, L, K, D).to(k_BLKD.dtype)


@block_attention_backward.register_fake
def _(
    grad_BLND: Tensor, q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, out_BLND: Tensor, starts_BL: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BLND, k_BLKD, v_BLKD))  # type: ignore[return-value]


def _setup(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    q_BLND, k_BLKD, v_BLKD, starts_BL = inputs
    ctx.save_for_backward(q_BLND, k_BLKD, v_BLKD, output, starts_BL)  # type: ignore[attr-defined]


def _backward(ctx: object, grad_BLND: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    q_BLND, k_BLKD, v_BLKD, out_BLND, starts_BL = ctx.saved_tensors  # type: ignore[attr-defined]
    return *block_attention_backward(grad_BLND, q_BLND, k_BLKD, v_BLKD, out_BLND, starts_BL), None


block_attention.register_autograd(_backward, setup_context=_setup)
