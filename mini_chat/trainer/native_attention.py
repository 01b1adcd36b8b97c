"""Attention over packed documents by a kernel of our own, for CPUs: `mini_chat/native/attention.cpp`.

`block_attention` does the same with torch's operations, for processors and machines that this one does not suit; what
either takes is in docs/log.md.

Shape suffixes: B rows, L positions of a row, N query heads, K key/value heads, D head width, T positions of a batch
(B·L), S bounds of its documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mini_chat import native

WIDTHS = 16  # head widths are multiples of it: a vector of the widest processors


def suits(head_dim: int) -> bool:
    """Whether the kernel takes heads of this width."""
    return head_dim % WIDTHS == 0


def bounds(starts_BL: Tensor) -> Tensor:
    """Where documents begin, all rows one after the other, and the end: int64 (S,)."""
    begins_BL = starts_BL == torch.arange(starts_BL.shape[1])
    begins_BL[:, 0] = True
    return torch.cat([begins_BL.flatten().nonzero().squeeze(1), torch.tensor([starts_BL.numel()])])


def _call(name: str, tensors: tuple[Tensor, ...], starts_BL: Tensor, q_BLND: Tensor, heads: int) -> None:
    _, _, N, D = q_BLND.shape
    dtypes = {x.dtype for x in tensors if x.dim() == q_BLND.dim()}
    if not suits(D) or N % heads or dtypes != {q_BLND.dtype}:
        raise ValueError(f"{name}: {N} query and {heads} key heads of width {D}, in {dtypes}")
    bounds_S = bounds(starts_BL)
    native.call(name, (*tensors, bounds_S), (len(bounds_S) - 1, N, heads, D))


@torch.library.custom_op("slm::native_attention", mutates_args=())
def attend(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> tuple[Tensor, Tensor]:
    """`native_attention`, and what its backward pass needs: the logarithms of the softmax's sums, float32 (B, L, N)."""
    q_BLND, k_BLKD, v_BLKD = (x.contiguous() for x in (q_BLND, k_BLKD, v_BLKD))
    out_BLND, lse_BLN = torch.empty_like(q_BLND), q_BLND.new_empty(q_BLND.shape[:3], dtype=torch.float32)
    _call("attention_forward", (q_BLND, k_BLKD, v_BLKD, out_BLND, lse_BLN), starts_BL, q_BLND, k_BLKD.shape[2])
    return out_BLND, lse_BLN


@attend.register_fake
def _(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q_BLND), q_BLND.new_empty(q_BLND.shape[:3], dtype=torch.float32)


@torch.library.custom_op("slm::native_attention_backward", mutates_args=())
def gradients(
    grad_BLND: Tensor,
    q_BLND: Tensor,
    k_BLKD: Tensor,
    v_BLKD: Tensor,
    out_BLND: Tensor,
    lse_BLN: Tensor,
    starts_BL: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    grad_BLND, q_BLND, k_BLKD, v_BLKD = (x.contiguous() for x in (grad_BLND, q_BLND, k_BLKD, v_BLKD))
    results = torch.empty_like(q_BLND), torch.empty_like(k_BLKD), torch.empty_like(v_BLKD)
    tensors = (grad_BLND, q_BLND, k_BLKD, v_BLKD, out_BLND, lse_BLN, *results)
    _call("attention_backward", tensors, starts_BL, q_BLND, k_BLKD.shape[2])
    return results


@gradients.register_fake
def _(grad_BLND: Tensor, q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q_BLND), _like(k_BLKD), _like(v_BLKD)


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup(ctx: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q_BLND, k_BLKD, v_BLKD, starts_BL = inputs
    ctx.mark_non_differentiable(output[1])  # type: ignore[attr-defined]
    ctx.save_for_backward(q_BLND, k_BLKD, v_BLKD, *output, starts_BL)  # type: ignore[attr-defined]


def _backward(ctx: object, grad_BLND: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *gradients(grad_BLND, *ctx.saved_tensors), None  # type: ignore[attr-defined]


attend.register_autograd(_backward, setup_context=_setup)


def native_attention(q_BLND: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, starts_BL: Tensor) -> Tensor:
    """Attention of scaled queries over the keys of their document up to themselves.

    Args:
        q_BLND, k_BLKD, v_BLKD: float32, or bfloat16, which the processor's bfloat16 units multiply where it has them;
            scores and sums are in float32.
        starts_BL: int64, for each position the place in its row where its document starts.

    Returns:
        (B, L, N, D) in the same dtype.
    """
    out_BLND: Tensor = attend(q_BLND, k_BLKD, v_BLKD, starts_BL)[0]
    return out_BLND
