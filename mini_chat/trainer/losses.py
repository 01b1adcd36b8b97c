"""The losses. Shape suffixes: N positions that have a label, H hidden, V vocabulary, P preference pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mini_chat.data.packing import IGNORE

CHUNK_LOGITS = 1 << 24  # logits that may exist at once: 64 MiB in float32, in the cache of a large processor
CHUNK_LOGITS_GPU = 1 << 28  # 1 GiB: small products leave a GPU idle
POSITIONS_STEP = 256  # positions are filled up to a multiple of this


def token_nll(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each label, float32 (N,) [nats], without ever holding the logits of all positions.

    The logits are made for a chunk of positions at a time and made again in the backward pass, so memory is
    that of CHUNK_LOGITS numbers, whatever the batch. The softmax runs in float32.

    How many positions have a label differs from step to step in SFT and DPO, and the processor's library keeps a
    prepared product, with its buffers, for each size it has met: 20 MB a step, 10 GB after some hundred (docs/log.md).
    So positions are filled up to one of a few sizes; what is filled up is ignored.
    """
    positions = len(labels_N)
    rows = max(1, (CHUNK_LOGITS_GPU if hidden_NH.is_cuda else CHUNK_LOGITS) // head_VH.shape[0])
    missing = -positions % min(POSITIONS_STEP, rows)
    hidden_NH = F.pad(hidden_NH, (0, 0, 0, missing))
    labels_N = F.pad(labels_N, (0, missing), value=IGNORE)
    if len(labels_N) <= rows:
        return chunk_nll(hidden_NH, head_VH, labels_N)[:positions]
    chunks = zip(hidden_NH.split(rows), labels_N.split(rows), strict=True)
    parts = [checkpoint(chunk_nll, hidden, head_VH, labels, use_reentrant=False) for hidden, labels in chunks]
    return torch.cat(parts)[:positions]


def chunk_nll(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor) -> Tensor:
    """`token_nll` of one chunk."""
    logits_NV = F.linear(hidden_NH, head_VH).float()
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="none")


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
