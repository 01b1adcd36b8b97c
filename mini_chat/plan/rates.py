"""The constants that were measured, not derived: `rates.yaml`, for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parent / "rates.yaml"


@dataclass(frozen=True)
class TimeRates:
    """What a step takes, in multiples of the time at the machine's own rates; see `throughput.Work`."""

    products: float
    attention: float
    traffic: float
    optimizer: float
    layer_seconds: float
    expert_seconds: float


@dataclass(frozen=True)
class MemoryRates:
    """What a process holds besides tensors.

    Args:
        process_bytes: libraries and interpreter, and the products that the processor's library keeps prepared.
        compiler_bytes: more where layers run compiled.
        expert_products: of the experts, whose products have ever new sizes, so many are kept prepared with their
            buffers: oneDNN's cache holds 1,024, each with a part of what it multiplies.
        unused_share: what the allocator holds unused, as a part of what is used at the peak.
    """

    process_bytes: float
    compiler_bytes: float
    expert_products: float
    unused_share: float

    def process(self, compiled: bool) -> float:
        """Bytes of the process without tensors."""
        return self.process_bytes + (self.compiler_bytes if compiled else 0.0)


@dataclass(frozen=True)
class Rates:
    """The constants of a kind of device, and where they are from."""

    time: TimeRates
    memory: MemoryRates
    time_from: str
    memory_from: str


def section(kind: str, precision: str) -> str:
    """The section of rates.yaml: a kind of device (cpu, cuda, mps), and of a CPU the precision too.

    A CPU's bfloat16 products leave more of the time to everything else.
    """
    return f"cpu-{precision}" if kind == "cpu" else kind


def of(kind: str, precision: str) -> Rates:
    """The constants of a kind of device that computes in bf16 or fp32."""
    values: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))[section(kind, precision)]
    return Rates(
        TimeRates(**values["time"]), MemoryRates(**values["memory"]), values["time_from"], values["memory_from"]
    )
