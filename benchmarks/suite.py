"""Runs benchmarks one after the other, each in a fresh process, and lays down the figures of each when it is done."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from benchmarks.results import table, write


def run(result: str, benchmarks: Sequence[str], need_text: Collection[str], names: list[str]) -> int:
    """Run the named benchmarks, or all, into `benchmarks/results/RESULT.json`; returns the exit status.

    Args:
        need_text: those that cannot do without MINI_CHAT_DATA.
    """
    command = f"bench-{result}"
    if unknown := [name for name in names if name not in benchmarks]:
        known = ", ".join(benchmarks)
        print(f"{command}: error: {', '.join(unknown)}: no such benchmark; known: {known}", file=sys.stderr)
        return 2
    chosen = names or benchmarks
    if not os.environ.get("MINI_CHAT_DATA") and any(name in need_text for name in chosen):
        print(f"{command}: error: say where the text is: make {command} DATA=/path/to/data", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        # A process of its own: what one has loaded and set (threads, allocator, environment) is not the next one's.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            figures = process.submit(measured, name).result()
        path = write(result, figures, name)
        print(table(figures))
        print(f"  ({time.monotonic() - began:.0f} s; written to {path})", flush=True)
    return 0


def measured(name: str) -> Mapping[str, float | str]:
    """The figures of a benchmark, in this process."""
    figures: Mapping[str, float | str] = importlib.import_module(f"benchmarks.{name}").measure()
    return figures
