"""Machines: this one, measured now, or one of a table with published figures.

The rates are those of dense products in the precision that `device.choose` takes there, accumulated in float32: the
makers' larger figures are of sparse matrices or of float16 accumulation, which training does not use.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mini_chat.errors import UserError

if TYPE_CHECKING:
    from mini_chat.config import Machine as Settings

THIS = "this"
GB = 1e9
COPY_BYTES = 1 << 26


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of a machine, for each of its devices.

    Args:
        kind: cpu, cuda or mps.
        compute_bytes: of a number in matrix products: 2 for bf16, 4 for float32.
        matmul_flops: dense matrix products [FLOP/s].
        memory_rate: reading and writing memory [bytes/s].
        memory_bytes: of the device; on a CPU what is available now.
        link_rate: to the other devices, in one direction [bytes/s].
        source: where the figures are from.
    """

    name: str
    kind: str
    compute_bytes: int
    matmul_flops: float
    memory_rate: float
    memory_bytes: float
    link_rate: float
    source: str

    @property
    def precision(self) -> str:
        """bf16 or fp32."""
        return "bf16" if self.compute_bytes == 2 else "fp32"


def gpu(name: str, teraflops: float, memory_rate: float, memory_bytes: float, link_rate: float, source: str) -> Machine:
    """A CUDA device; in TFLOP/s, GB/s, GB, GB/s."""
    return Machine(name, "cuda", 2, teraflops * 1e12, memory_rate * GB, memory_bytes * GB, link_rate * GB, source)


def apple(name: str, teraflops: float, memory_rate: float, memory_bytes: float, source: str) -> Machine:
    """A GPU of Apple's, which computes in float32 here, as one with memory of the commonest size."""
    return Machine(name, "mps", 4, teraflops * 1e12, memory_rate * GB, memory_bytes * GB, memory_rate * GB, source)


PCIE_3, PCIE_4, NVLINK_3, NVLINK_4 = 16, 32, 300, 450  # GB/s in one direction

TABLE = {
    machine.name: machine
    for machine in (
        gpu("rtx-3060", 25.5, 360, 12, PCIE_4, "NVIDIA, Ampere GA102 whitepaper: 512 FLOP a cycle and SM, 28 SM"),
        gpu("rtx-3090", 71.2, 936, 24, PCIE_4, "NVIDIA, Ampere GA102 whitepaper, table 9"),
        gpu("rtx-4090", 165.2, 1008, 24, PCIE_4, "NVIDIA, Ada whitepaper, appendix A"),
        gpu("l4", 121, 300, 24, PCIE_4, "NVIDIA, L4 data sheet (half of the sparse figure)"),
        gpu("a100-40gb", 312, 1555, 40, NVLINK_3, "NVIDIA, A100 data sheet, SXM"),
        gpu("a100", 312, 2039, 80, NVLINK_3, "NVIDIA, A100 data sheet, SXM 80 GB"),
        gpu("h100", 989.4, 3350, 80, NVLINK_4, "NVIDIA, H100 data sheet, SXM (half of the sparse figure)"),
        gpu("h200", 989.4, 4800, 141, NVLINK_4, "NVIDIA, H200 data sheet (half of the sparse figure)"),
        apple("m1", 2.6, 68.25, 16, "Apple, M1 press release, 8-core GPU"),
        apple("m1-max", 10.4, 400, 32, "Apple, M1 Max press release, 32-core GPU"),
        apple("m2", 3.6, 100, 16, "Apple, M2 press release, 10-core GPU"),
    )
}
"""Name → machine."""


def find(name: str, settings: Settings) -> Machine:
    """The machine of a name: `this`, measured now as `settings` choose the device, or one of the table.

    Raises:
        UserError: there is none of that name, or this machine lacks the device that the settings ask for.
    """
    if name == THIS:
        return this_machine(settings)
    if name not in TABLE:
        near = difflib.get_close_matches(name.lower().replace(" ", "-"), TABLE, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {THIS}, {', '.join(TABLE)}"
        raise UserError(f"--machine {name}: no such machine; {hint}")
    return TABLE[name]


def this_machine(settings: Settings) -> Machine:
    """This machine, as the training stages would use it."""
    import torch

    from mini_chat.device import choose

    device = choose(settings)
    kind = device.torch_device.type
    if kind == "cuda":
        memory_bytes = float(torch.cuda.get_device_properties(device.torch_device).total_memory)
        name = torch.cuda.get_device_name(device.torch_device)
    else:
        import psutil

        memory_bytes = float(psutil.virtual_memory().available)
        name = f"this machine ({kind}, {device.threads} threads)" if kind == "cpu" else f"this machine ({kind})"
    return Machine(
        name=name,
        kind=kind,
        compute_bytes=device.compute_dtype.itemsize,
        matmul_flops=device.matmul_flops,
        memory_rate=memory_rate(device),
        memory_bytes=memory_bytes,
        link_rate=PCIE_3 * GB,
        source="measured now",
    )


def memory_rate(device: object) -> float:
    """Bytes read and written per second by copies far larger than the caches; the best of several."""
    import torch

    from mini_chat.device import Device

    assert isinstance(device, Device)
    source = torch.ones(COPY_BYTES // 4, device=device.torch_device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(8):
        device.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        device.synchronize()
        best = max(best, 2 * COPY_BYTES / (time.perf_counter() - began))
    return best
