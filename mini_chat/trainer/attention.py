"""Attention over packed rows in training, by the function that is fast on the device.

On a CPU torch's fused attention runs at a tenth of the matrix-product rate, and works through every pair of positions
and a mask; ours multiplies the blocks in which documents see themselves (`block_attention`). Elsewhere `sdpa` is best
left alone.

Shape suffixes: B rows, L positions, S keys, N query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mini_chat.data.packing import Batch
from mini_chat.device import Device
from mini_chat.trainer.block_attention import block_attention

NAME = "slm_blocks"


def document_attention(
    module: nn.Module,
    q_BNLD: Tensor,
    k_BKLD: Tensor,
    v_BKLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    document_starts_BL: Tensor,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within documents, in the dtype of the values (the compute dtype, under autocast).

    Args:
        document_starts_BL: int64, for each position the place in its row where its document starts.

    Returns:
        (B, L, N, D) in the values' dtype.
    """
    dtype = v_BKLD.dtype
    q_BLND = (q_BNLD * scaling).to(dtype).transpose(1, 2)
    k_BLKD, v_BLKD = k_BKLD.to(dtype).transpose(1, 2), v_BKLD.transpose(1, 2)
    return block_attention(q_BLND, k_BLKD, v_BLKD, document_starts_BL), None


ALL_ATTENTION_FUNCTIONS.register(NAME, document_attention)


def who_sees_whom(model: Any, batch: Batch) -> dict[str, Tensor]:
    """What tells the attention function of the moment that no document of a batch sees another.

    A bool mask (B, 1, L, L) for `sdpa`; for ours the place where each position's document starts.
    """
    if model.config._attn_implementation != NAME:
        return {"attention_mask": batch.attention_mask()}
    places_L = torch.arange(batch.position_ids_BL.shape[1], device=batch.position_ids_BL.device)
    return {"document_starts_BL": places_L - batch.position_ids_BL}


@contextmanager
def packed_attention(model: Any, device: Device) -> Iterator[None]:
    """Attend with the device's fastest function within the block; generation outside of it keeps its own."""
    previous = model.config._attn_implementation
    if device.torch_device.type == "cpu":
        model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = previous
