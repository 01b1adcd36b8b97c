"""Kernels of our own for CPUs, in C++: compiled where they run, and done without where that cannot be."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from mini_chat.console import say
from mini_chat.errors import UserError
from mini_chat.native.build import built

DTYPES = (torch.float32, torch.bfloat16)

_allowed = True


def allow(allowed: bool) -> None:
    """Let the kernels be used from now on, or not: results differ by rounding, so `machine.compile` decides."""
    global _allowed
    _allowed = allowed


def available() -> bool:
    """Whether the kernels may be used and can be had; compiles them if need be."""
    return _allowed and library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be compiled, and a line says so."""
    try:
        return ctypes.CDLL(str(built()))
    except (UserError, OSError) as error:
        say(f"training without our kernels: {error}; a C++ compiler makes it faster")
        return None


def call(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Call a kernel: with the addresses of contiguous tensors, sizes, the first tensor's dtype and all threads."""
    kernels = library()
    assert kernels is not None and tensors[0].dtype in DTYPES
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    is_bf16, threads = ctypes.c_int(tensors[0].dtype == torch.bfloat16), ctypes.c_long(torch.get_num_threads())
    getattr(kernels, name)(*addresses, *map(ctypes.c_long, sizes), is_bf16, threads)
