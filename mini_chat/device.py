"""The device layer: where the model runs, in which precision, and how fast the hardware could be.

What differs between kinds of hardware is asked of a `Device`, or looked up by its kind where it belongs to one thing
alone: the attention of a GPU in `trainer/attention.py`, the chunks of the loss in `trainer/losses.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from mini_chat import native
from mini_chat.config import Machine
from mini_chat.distributed import local_processes, local_rank, processes
from mini_chat.errors import UserError
from mini_chat.parallel import available_cores

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's mallopt, malloc.h


@dataclass(frozen=True)
class Device:
    """A chosen device; see `choose`."""

    torch_device: torch.device
    compute_dtype: torch.dtype
    threads: int
    compile: str = "off"
    parallel: str = "auto"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Matrix products in the compute dtype; everything else stays in float32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, self.compute_dtype)

    @property
    def precision(self) -> str:
        """bf16 or fp32."""
        return "bf16" if self.compute_dtype == torch.bfloat16 else "fp32"

    @contextlib.contextmanager
    def in_order(self, wanted: bool = True) -> Iterator[None]:
        """Within the block a GPU adds up in one order at every run, so that a resumed run ends in the same bits.

        Operations that cannot raise RuntimeError there, the sampling of answers for one. What it costs is in
        docs/log.md. cuBLAS reads its part of it from the environment (`cli.prepare_environment`). A CPU does it always.

        Args:
            wanted: False lets a GPU add up as it likes, within a block of the other kind.
        """
        before = torch.are_deterministic_algorithms_enabled()
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing reads it
        torch.use_deterministic_algorithms(wanted and self.torch_device.type == "cuda")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)

    @property
    def kernels(self) -> bool:
        """Whether our own kernels are used; they are compiled if need be."""
        return self.torch_device.type == "cpu" and self.compile != "off" and native.library() is not None

    @cached_property
    def matmul_flops(self) -> float:
        """The matrix-product rate measured here and now, in the compute dtype [FLOP/s].

        The best of several products, of (2048, 1024) by (1024, 1024) on a CPU, of (8192, 8192) by itself
        elsewhere: what a perfect training step could reach.
        """
        rows, width = (2048, 1024) if self.torch_device.type == "cpu" else (8192, 8192)
        x = torch.randn(rows, width, device=self.torch_device, dtype=self.compute_dtype)
        weight = torch.randn(width, width, device=self.torch_device, dtype=self.compute_dtype)
        flops, best, repeats = 2 * rows * width * width, 0.0, 8
        for _ in range(6):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(x, weight)
            self.synchronize()
            best = max(best, repeats * flops / (time.perf_counter() - start))
        return best

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize()
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    @property
    def identity(self) -> dict[str, object]:
        """What the bits of a run depend on."""
        spread = {"processes": processes(), "parallel": self.parallel} if processes() > 1 else {}
        kernels = {"kernels": self.kernels} if self.torch_device.type == "cpu" else {}
        return {
            "device": self.torch_device.type,
            "precision": self.precision,
            "threads": self.threads,
            "compile": self.compile,
            **kernels,
            **spread,
        }


def choose(machine: Machine) -> Device:
    """Pick the device, the precision that it is fast in, and the number of threads; set torch up for them.

    Raises:
        UserError: the device asked for is not there.
    """
    kind = machine.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device cuda: this machine has no CUDA device that torch can use; use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("machine.device mps: this machine has no MPS device that torch can use; use auto or cpu")
    threads = machine.threads or max(1, available_cores() // local_processes())
    torch.set_num_threads(threads)
    if kind == "cpu":
        keep_large_buffers()
    fast_bf16 = {"cpu": cpu_multiplies_bf16, "cuda": cuda_multiplies_bf16, "mps": lambda: False}[kind]
    bf16 = machine.precision == "bf16" or (machine.precision == "auto" and fast_bf16())
    dtype = torch.bfloat16 if bf16 else torch.float32
    return Device(torch_device(kind), dtype, threads, machine.compile, machine.parallel)


def torch_device(kind: str) -> torch.device:
    """The device of a kind; of several GPUs, the one of this process.

    Raises:
        UserError: more processes than GPUs on this machine, or several processes on a device that only one can use.
    """
    if local_processes() == 1:
        return torch.device(kind)
    if kind == "mps":
        raise UserError("machine.device mps: several processes cannot train on it together; start one, or use cpu")
    if kind == "cpu":
        return torch.device(kind)
    if local_processes() > torch.cuda.device_count():
        raise UserError(
            f"{local_processes()} processes on a machine of {torch.cuda.device_count()} GPUs; "
            "set torchrun's --nproc_per_node to the number of GPUs"
        )
    torch.cuda.set_device(local_rank())
    return torch.device(kind, local_rank())


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has bfloat16 matrix instructions (AVX512-BF16 or AMX); without them bf16 is slower."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cuda_multiplies_bf16() -> bool:
    """Whether the GPU has bfloat16 units (Ampere and later); torch emulates them elsewhere, which is slower."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def keep_large_buffers() -> None:
    """Let glibc's malloc keep freed buffers instead of unmapping and faulting them in again at every step.

    Measured at the demo's shape: 7% of a training step (docs/log.md). Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, ctypes.c_int(1 << 30))
