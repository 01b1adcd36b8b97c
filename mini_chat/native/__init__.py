"""Kernels of our own for CPUs, in C++: compiled where they run, and done without where that cannot be."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from mini_chat.console import say
from mini_chat.errors import UserError
from mini_chat.native.build import built

PROCESSORS = ("x86_64", "AMD64")
LEAST_WIDTH = 8  # float32 numbers of a vector: with less torch's own operations are faster (docs/log.md)
DTYPES = (torch.float32, torch.bfloat16)

_in_use = False


@contextmanager
def in_use(use: bool) -> Iterator[None]:
    """Compute with the kernels within the block, or without: results differ by rounding, so the device decides.

    Args:
        use: only True where there is a `library`.
    """
    global _in_use
    before, _in_use = _in_use, use
    try:
        yield
    finally:
        _in_use = before


def are_in_use() -> bool:
    """Whether the block that runs computes with the kernels."""
    return _in_use


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels.

    None on processors that they do not suit, and where they cannot be compiled: a line says so then.
    """
    if platform.machine() not in PROCESSORS:
        return None
    try:
        kernels = loaded()
    except (UserError, OSError) as error:
        say(f"training without our own kernels, which is slower: {error}")
        return None
    return kernels if kernels.vector_width() >= LEAST_WIDTH else None


def loaded() -> ctypes.CDLL:
    """The compiled kernels; what cannot be loaded is damaged, and compiled anew.

    Raises:
        UserError: they cannot be compiled.
        OSError: what was just compiled cannot be loaded.
    """
    path = built()
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(built()))


def call(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Call a kernel: with the addresses of tensors, sizes, the first tensor's dtype and all threads.

    Raises:
        ValueError: a tensor that the kernel cannot read: on another device, with gaps, of a dtype it does not know.
    """
    kernels = library()
    assert kernels is not None
    if tensors[0].dtype not in DTYPES:
        raise ValueError(f"{name}: no kernel for {tensors[0].dtype}")
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"{name}: a tensor on {tensor.device} with strides {tensor.stride()}")
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    is_bf16, threads = ctypes.c_int(tensors[0].dtype == torch.bfloat16), ctypes.c_long(torch.get_num_threads())
    getattr(kernels, name)(*addresses, *map(ctypes.c_long, sizes), is_bf16, threads)
