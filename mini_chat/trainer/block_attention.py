"""Attention over packed documents on a CPU: matrix products of blocks, and only of blocks where someone may look.

In a row of packed documents a query sees from the start of its document to itself. So a block of queries needs the
keys from the block in which its first query's document starts up to its own: causality halves the work, short documents
cut it further. Blocks that need equally many keys, of all rows, are multiplied together in one batched product at the
processor's full rate; the softmax between the products runs while their scores are in the cache. Nothing of the size of
the scores is kept for the backward pass, which makes them again (as FlashAttention does, arXiv:2205.14135).

What it brings is in docs/log.md.

Shape suffixes: B rows, L positions of a row, N query heads, K key/value heads, G query heads per key/value head, D head
width; Q blocks of a batch, b positions of a block, C blocks worked on together, W key blocks that each of them
sees, S = W·b keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
SHORT_ROW_BLOCK = 32  # of rows under 512 positions
SCORES_BYTES = 1 << 23  # of one product: what stays in the cache until the softmax has read it


class Group(NamedTuple):
    """Blocks of queries that see equally many blocks of keys; blocks are counted through all rows of the batch."""

    queries_C: Tensor
    keys_CW: Tensor
    mask_CbS: Tensor
    """0 where a query may look, -inf elsewhere: adding it is several times as fast as filling by a bool mask."""


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
    within_b = torch.arange(block)
    groups = []
    for width in width_Q.unique().tolist():
        queries_C = number_Q[width_Q == width]
        keys_CW = (queries_C - width + 1)[:, None] + torch.arange(width)
        key_CS = (first_Q[queries_C, None] * block) + torch.arange(width * block)
        query_Cb = own_Q[queries_C, None] * block + within_b
        hidden_CbS = (key_CS[:, None] > query_Cb[:, :, None]) | (key_CS[:, None] < starts_Qb[queries_C][:, :, None])
        mask_CbS = torch.zeros(hidden_CbS.shape, dtype=dtype).masked_fill_(hidden_CbS, float("-inf"))
        groups.append(Group(queries_C, keys_CW, mask_CbS))
    return groups


@lru_cache(maxsize=4)
def _planned(data: bytes, rows: int, block: int, dtype: torch.dtype) -> list[Group]:
    return plan(torch.frombuffer(bytearray(data), dtype=torch.int64).view(rows, -1), block, dtype)


def pieces(starts_BL: Tensor, block: int, heads: int, dtype: torch.dtype) -> Iterator[Group]:
    """The groups of a batch, each in pieces whose scores fit SCORES_BYTES.

    All layers, and the backward pass, ask for the same batch's groups; they are made once.
    """
    for group in _planned(starts_BL.numpy().tobytes(), len(starts_BL), block, dtype):
        size = max(1, SCORES_BYTES // (heads * group.mask_CbS[0].numel() * dtype.itemsize))
        for parts in zip(*(tensor.split(size) for tensor in group), strict=True):
            yield Group(*parts)


def _cut_queries(x_BLND: Tensor, block: int, K: int) -> Tensor:
    """Queries, or what goes with each of them, as blocks under the key head that they share: (Q, K, G, b, D)."""
    B, L, N, D = x_BLND.shape
    return x_BLND.reshape(B * (L // block), block, K, N // K, D).permute(0, 2, 3, 1, 4)


def _cut_keys(x_BLKD: Tensor, block: int) -> Tensor:
    """Keys or values as blocks: (Q, K, b, D)."""
    B, L, K, D = x_BLKD.shape
    return x_BLKD.reshape(B * (L // block), block, K, D).transpose(1, 2)


def _window(x_QKbD: Tensor, keys_CW: Tensor) -> Tensor:
    """The keys (or values) that each block sees, (C·K, S, D)."""
    C, W = keys_CW.shape
    _, K, b, D = x_QKbD.shape
    return x_QKbD[keys_CW].transpose(1, 2).reshape(C * K, W * b, D)


def _weights(q_XYD: Tensor, k_XSD: Tensor, mask_CbS: Tensor) -> Tensor:
    """Attention weights of some blocks, (X, Y, S); X = C·K, Y = G·b."""
    C, b, S = mask_CbS.shape
    scores_XYS = torch.bmm(q_XYD, k_XSD.transpose(1, 2))
    scores_XYS.view(C, -1, b, S).add_(mask_CbS[:, None])
    return torch.softmax(scores_XYS, dim=-1)


@torch.library.custom_op("slm::block_attention", mutates_args=())
def block_attention(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> Tensor:
    """Attention of scaled queries over the keys from `starts_BL` to themselves.

    Args:
        q_BLND, k_BLKD, v_BLKD: of one float dtype, in which products and weights are kept; softmax computes in float32.
        starts_BL: int64, for each position the first one of its row that it may see.

    Returns:
        (B, L, N, D) in the same dtype.
    """
    B, L, N, D = q_BLND.shape
    K, block = k_BLKD.shape[2], block_size(L)
    q_QKGbD = _cut_queries(q_BLND, block, K)
    k_QKbD, v_QKbD = _cut_keys(k_BLKD, block), _cut_keys(v_BLKD, block)
    out_QKGbD = torch.empty(q_QKGbD.shape, dtype=q_BLND.dtype)
    for queries_C, keys_CW, mask_CbS in pieces(starts_BL, block, N, q_BLND.dtype):
        q_XYD = q_QKGbD[queries_C].reshape(-1, N // K * block, D)
        weights_XYS = _weights(q_XYD, _window(k_QKbD, keys_CW), mask_CbS)
        out_XYD = torch.bmm(weights_XYS, _window(v_QKbD, keys_CW))
        out_QKGbD[queries_C] = out_XYD.view(-1, K, N // K, block, D)
    return out_QKGbD.permute(0, 3, 1, 2, 4).reshape(B, L, N, D)


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
    k_QKbD, v_QKbD = _cut_keys(k_BLKD, block), _cut_keys(v_BLKD, block)
    dq_QKGbD = torch.empty(q_QKGbD.shape, dtype=q_BLND.dtype)
    dk_QKbD, dv_QKbD = (torch.zeros(x.shape, dtype=exact) for x in (k_QKbD, v_QKbD))
    for queries_C, keys_CW, mask_CbS in pieces(starts_BL, block, N, q_BLND.dtype):
        q_XYD, grad_XYD = (x[queries_C].reshape(-1, G * block, D) for x in (q_QKGbD, grad_QKGbD))
        delta_XY1 = delta_QKGb1[queries_C].reshape(-1, G * block, 1)
        k_XSD, v_XSD = _window(k_QKbD, keys_CW), _window(v_QKbD, keys_CW)
        weights_XYS = _weights(q_XYD, k_XSD, mask_CbS)
        dscores_XYS = torch.bmm(grad_XYD, v_XSD.transpose(1, 2)).sub_(delta_XY1).mul_(weights_XYS)
        dq_QKGbD[queries_C] = torch.bmm(dscores_XYS, k_XSD).view(-1, K, G, block, D)
        for total, part_XSD in (
            (dk_QKbD, torch.bmm(dscores_XYS.transpose(1, 2), q_XYD)),
            (dv_QKbD, torch.bmm(weights_XYS.transpose(1, 2), grad_XYD)),
        ):
            C, W = keys_CW.shape
            part = part_XSD.to(exact).view(C, K, W, block, D).transpose(1, 2).reshape(C * W, K, block, D)
            total.index_add_(0, keys_CW.flatten(), part)
    dq = dq_QKGbD.permute(0, 3, 1, 2, 4).reshape(B, L, N, D)
    dk, dv = (x.transpose(1, 2).reshape(B, L, K, D).to(k_BLKD.dtype) for x in (dk_QKbD, dv_QKbD))
    return dq, dk, dv


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
