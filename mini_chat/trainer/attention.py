"""Attention over packed rows in training, by the function that is fast on the device.

On a CPU torch's fused attention runs at a tenth of the matrix-product rate, and works through every pair of positions
and a mask; ours takes each document by itself, in a kernel of our own (`native_attention`), or with torch's operations
where that cannot be compiled (`block_attention`). On a GPU FlashAttention (arXiv:2307.08691) takes all documents of a
batch one after the other, of any lengths. Elsewhere `sdpa` is left alone.

Shape suffixes: B rows, L positions, N query heads, K key/value heads, D head width, T positions of a
batch (B·L), S bounds of its documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mini_chat import native
from mini_chat.data.packing import Batch
from mini_chat.device import Device
from mini_chat.trainer.block_attention import block_attention
from mini_chat.trainer.native_attention import native_attention, suits

try:
    from torch.nn.attention.varlen import varlen_attn

    KNOWN = set(inspect.signature(varlen_attn).parameters)
except ImportError:  # torch without FlashAttention
    KNOWN = set()

BLOCKS, NATIVE, FLASH = "slm_blocks", "slm_native", "slm_flash"
CAUSAL = (-1, 0)  # a window from the beginning to the query itself


def document_attention(
    module: nn.Module,
    q_BNLD: Tensor,
    k_BKLD: Tensor,
    v_BKLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    document_starts_BL: Tensor,
    dropout: float = 0.0,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = block_attention,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within documents, in the dtype of the values (the compute dtype, under autocast).

    Args:
        document_starts_BL: int64, for each position the place in its row where its document starts.
        attend: the function that does it, `block_attention` or `native_attention`.

    Returns:
        (B, L, N, D) in the values' dtype.
    """
    dtype = v_BKLD.dtype
    q_BLND = (q_BNLD * scaling).to(dtype).transpose(1, 2)
    k_BLKD, v_BLKD = k_BKLD.to(dtype).transpose(1, 2), v_BKLD.transpose(1, 2)
    return attend(q_BLND, k_BLKD, v_BLKD, document_starts_BL), None


def flash_attention(
    module: nn.Module,
    q_BNLD: Tensor,
    k_BKLD: Tensor,
    v_BKLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    document_bounds_S: Tensor,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same by FlashAttention.

    Args:
        document_bounds_S: int32, see `Batch.bounds_S`.
    """
    B, N, L, D = q_BNLD.shape
    dtype = v_BKLD.dtype
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in KNOWN else {}
    if not options:  # before torch 2.12 every query head has keys of its own
        groups = N // k_BKLD.shape[1]
        k_BKLD, v_BKLD = (x.repeat_interleave(groups, dim=1) for x in (k_BKLD, v_BKLD))
    q_TND, k_TKD, v_TKD = (x.to(dtype).transpose(1, 2).reshape(B * L, -1, D) for x in (q_BNLD, k_BKLD, v_BKLD))
    bounds = document_bounds_S
    out_TND: Any = varlen_attn(q_TND, k_TKD, v_TKD, bounds, bounds, L, L, scale=scaling, window_size=CAUSAL, **options)
    return out_TND.view(B, L, N, D), None


ALL_ATTENTION_FUNCTIONS.register(BLOCKS, document_attention)
ALL_ATTENTION_FUNCTIONS.register(NATIVE, partial(document_attention, attend=native_attention))
ALL_ATTENTION_FUNCTIONS.register(FLASH, flash_attention)


def fastest(model: Any, device: Device) -> str:
    """The name of the attention function to train with."""
    if device.torch_device.type == "cpu":
        return NATIVE if device.kernels and suits(model.config.head_dim) else BLOCKS
    # FlashAttention multiplies 16-bit numbers, of heads whose width is a multiple of 8.
    flash = device.torch_device.type == "cuda" and device.compute_dtype == torch.bfloat16
    if flash and {"scale", "window_size"} <= KNOWN and model.config.head_dim % 8 == 0:
        return FLASH
    return str(model.config._attn_implementation)


def who_sees_whom(model: Any, batch: Batch) -> dict[str, Tensor]:
    """What tells the attention function of the moment that no document of a batch sees another.

    A bool mask (B, 1, L, L) for `sdpa`; on a CPU the place where each position's document starts; for FlashAttention
    the documents' bounds.
    """
    if model.config._attn_implementation == FLASH:
        return {"document_bounds_S": batch.bounds_S}
    if model.config._attn_implementation not in {BLOCKS, NATIVE}:
        return {"attention_mask": batch.attention_mask()}
    places_L = torch.arange(batch.position_ids_BL.shape[1], device=batch.position_ids_BL.device)
    return {"document_starts_BL": places_L - batch.position_ids_BL}


@contextmanager
def packed_attention(model: Any, device: Device) -> Iterator[None]:
    """Attend with the device's fastest function within the block, and compute with our kernels where it has them.

    Generation outside of it keeps its own.
    """
    previous = model.config._attn_implementation
    model.config._attn_implementation = fastest(model, device)
    try:
        with native.in_use(device.kernels):
            yield
    finally:
        model.config._attn_implementation = previous
