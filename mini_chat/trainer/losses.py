"""The losses. Shape suffixes: N positions that have a label, H hidden, V vocabulary, P preference pairs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mini_chat import native

CHUNK_LOGITS = 1 << 24  # logits that may exist at once: 64 MiB in float32, in the cache of a large processor
CHUNK_LOGITS_GPU = 1 << 28  # 1 GiB: small products leave a GPU idle
POSITIONS_STEP = 256  # positions are filled up to a multiple of this


def token_nll(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each label, float32 (N,) [nats], without ever holding the logits of all positions.

    The logits are made for a chunk of positions at a time and made again in the backward pass, so memory is
    that of CHUNK_LOGITS numbers, whatever the batch. The softmax runs in float32.
    """
    positions, rows = len(labels_N), chunk_rows(hidden_NH, head_VH)
    hidden_NH, labels_N = filled_up(hidden_NH, labels_N, rows)
    if len(labels_N) <= rows:
        return chunk_nll(hidden_NH, head_VH, labels_N)[:positions]
    chunks = zip(hidden_NH.split(rows), labels_N.split(rows), strict=True)
    parts = [checkpoint(chunk_nll, hidden, head_VH, labels, use_reentrant=False) for hidden, labels in chunks]
    return torch.cat(parts)[:positions]


def chunk_nll(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
    """`token_nll` of one chunk."""
    logits_NV = F.linear(hidden_NH, head_VH).float()
    return F.cross_entropy(logits_NV, labels_N, reduction="none")


def total_nll(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
    """The sum of `token_nll`, a scalar, in two thirds of the time where there are several chunks.

    In a sum all positions weigh the same, so the gradients of a chunk are known as soon as its logits are. They are
    made then, up to the factor that the backward pass brings, and no logits are made twice (as in Liger's fused linear
    cross-entropy, arXiv:2410.10989). They serve one backward pass.
    """
    if not torch.is_grad_enabled() or len(labels_N) == 0:
        return token_nll(hidden_NH, head_VH, labels_N).sum()
    total: Tensor = TotalNLL.apply(hidden_NH, head_VH, labels_N)
    return total


class TotalNLL(torch.autograd.Function):
    """See `total_nll`. Products are in the compute dtype; what is added up over chunks is in the weights' dtype."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
        kind, positions, rows = hidden_NH.device.type, len(labels_N), chunk_rows(hidden_NH, head_VH)
        ctx.hidden_dtype = hidden_NH.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_NH.dtype
        with torch.autocast(kind, enabled=False):
            hidden_NH, labels_N = filled_up(hidden_NH.to(dtype), labels_N, rows)
            head = head_VH.to(dtype)
            d_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
            d_head_VH = torch.zeros_like(head_VH) if ctx.needs_input_grad[1] else None
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=head.device)
            for first in range(0, len(labels_N), rows):
                hidden, labels = hidden_NH[first : first + rows], labels_N[first : first + rows]
                nll, d_logits = nll_and_gradient(chunk_of_logits(hidden, head, rows), labels)
                real = min(len(labels), positions - first)
                total += nll[:real].sum()
                d_logits[real:] = 0
                if d_hidden_NH is not None:
                    torch.mm(d_logits, head, out=d_hidden_NH[first : first + rows])
                if d_head_VH is not None and d_head_VH.dtype == dtype:
                    d_head_VH.addmm_(d_logits.T, hidden)
                elif d_head_VH is not None:
                    d_head_VH += d_logits.T @ hidden
                del d_logits  # the next chunk's take its room
        ctx.gradients = None if d_hidden_NH is None else d_hidden_NH[:positions], d_head_VH
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden_NH, d_head_VH = ctx.gradients
        del ctx.gradients  # scaled in place, so good for one backward pass
        if d_hidden_NH is not None:
            d_hidden_NH = d_hidden_NH.to(ctx.hidden_dtype).mul_(d_total)
        if d_head_VH is not None:
            d_head_VH.mul_(d_total)
        return d_hidden_NH, d_head_VH, None


def chunk_of_logits(hidden_NH: Tensor, head_VH: Tensor, rows: int) -> Tensor:
    """Logits of at most so many rows; where our kernels work in their memory it is the same every time."""
    if not kernel_serves(hidden_NH):
        return F.linear(hidden_NH, head_VH)
    numbers = len(hidden_NH) * len(head_VH)
    room = room_for_logits(rows * len(head_VH), hidden_NH.dtype)[:numbers]
    return torch.mm(hidden_NH, head_VH.T, out=room.view(len(hidden_NH), len(head_VH)))


@lru_cache(maxsize=1)
def room_for_logits(numbers: int, dtype: torch.dtype) -> Tensor:
    """Memory that stays from step to step.

    So large a piece, taken and given back at every step, leaves holes that nothing else fits: peaks were 8 to 30%
    higher, another each time (docs/log.md).
    """
    return torch.empty(numbers, dtype=dtype)


def nll_and_gradient(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each label, at least float32, and the gradient of the logits, in their dtype.

    That is each token's probability, less one for the label. The logits are no more after it: on a CPU a kernel of ours
    writes the gradient over them.
    """
    if kernel_serves(logits_NV):
        nll_N = logits_NV.new_empty(len(labels_N), dtype=torch.float32)
        native.call("cross_entropy", (logits_NV, labels_N.long().contiguous(), nll_N), tuple(logits_NV.shape))
        return nll_N, logits_NV
    dtype = logits_NV.dtype
    logits_NV = logits_NV.to(torch.promote_types(dtype, torch.float32))  # nobody else's: their memory is free
    log_p_NV = torch.log_softmax(logits_NV, dim=-1)
    del logits_NV
    nll_N = -log_p_NV.gather(1, labels_N[:, None]).squeeze(1)
    d_logits_NV = log_p_NV.exp_()
    d_logits_NV[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1
    return nll_N, d_logits_NV.to(dtype)


def kernel_serves(tensor: Tensor) -> bool:
    """Whether our kernels are in use, and read tensors of this kind."""
    return tensor.device.type == "cpu" and tensor.dtype in native.DTYPES and native.are_in_use()


def chunk_logits(kind: str) -> int:
    """Logits that may exist at once on a kind of device: cpu, cuda, mps."""
    return CHUNK_LOGITS_GPU if kind == "cuda" else CHUNK_LOGITS


def chunk_rows(hidden_NH: Tensor, head_VH: Tensor) -> int:
    """Positions whose logits are made together."""
    rows = max(1, chunk_logits(hidden_NH.device.type) // head_VH.shape[0])
    return rows - rows % POSITIONS_STEP if rows > POSITIONS_STEP else rows


def filled_up(hidden_NH: Tensor, labels_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both with positions added whose loss nobody reads, so that products come in few sizes.

    How many positions have a label differs from step to step in SFT and DPO, and the processor's library keeps a
    prepared product, with its buffers, for each size it has met: 20 MB a step, 10 GB after some hundred (docs/log.md).
    """
    missing = -len(labels_N) % min(POSITIONS_STEP, rows)
    if not missing:  # F.pad would copy
        return hidden_NH, labels_N
    return F.pad(hidden_NH, (0, 0, 0, missing)), F.pad(labels_N, (0, missing))


def dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation, eq. 7 of arXiv:2305.18290.

    `-log σ(β · ((log π(c) - log π_ref(c)) - (log π(r) - log π_ref(r))))`, each a sum over the answer's tokens.

    Args:
        chosen_P, rejected_P: log-probabilities of the answers under the policy [nats].
        reference_chosen_P, reference_rejected_P: the same under the frozen reference.

    Returns:
        The loss of each pair and the margin of its implicit rewards, both float32 (P,).
    """
    margin_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    return -F.logsigmoid(margin_P), margin_P
