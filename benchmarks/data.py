"""Everything that is measured of the corpus stages, side by side with what a user would take instead.

    make bench-data DATA=/path/to/data            (or: python -m benchmarks.data [NAME ...])

Writes `benchmarks/results/data.json`. Takes the better part of an hour; a name runs one of the benchmarks only.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

from benchmarks.results import table, write

BENCHMARKS = ("extract", "simplify", "clean", "tokenizers", "shards", "corpus_kills")


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; returns the exit status."""
    if not os.environ.get("MINI_CHAT_DATA"):
        print("bench-data: error: say where the text is: make bench-data DATA=/path/to/data", file=sys.stderr)
        return 2
    if unknown := set(names) - set(BENCHMARKS):
        print(f"bench-data: error: {', '.join(unknown)}: no such benchmark; known: {', '.join(BENCHMARKS)}")
        return 2
    for name in names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        figures = importlib.import_module(f"benchmarks.{name}").measure()
        path = write("data", figures)
        print(table(figures))
        print(f"  ({time.monotonic() - began:.0f} s; written to {path})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
