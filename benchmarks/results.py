"""Where a benchmark's figures go: `benchmarks/results/NAME.json`, flat, with the machine and the date."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: Mapping[str, Any], part: str = "") -> Path:
    """Lay the figures over those that are there already, and say of what machine and day they are.

    Args:
        part: the benchmark whose figures they are, if others write to the same file: made on another machine than the
            rest, they say so under `PART_machine` and `PART_date`.
    """
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory_gib():.0f} GiB",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    path.parent.mkdir(exist_ok=True)
    content = {key: value for key, value in earlier.items() if key not in {f"{part}_machine", f"{part}_date"}}
    if part and earlier.get("machine", about["machine"]) != about["machine"]:
        about = {f"{part}_machine": about["machine"], f"{part}_date": about["date"]}
    content |= {**figures, **about}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def processor() -> str:
    """The processor's name as the kernel tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of the machine [GiB]."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def table(figures: Mapping[str, float | str]) -> str:
    """The figures in two columns."""
    width = max(map(len, figures))

    def shown(value: float | str) -> str:
        if isinstance(value, str):
            return value
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"

    return "\n".join(f"  {name:<{width}}  {shown(value):>16}" for name, value in figures.items())
