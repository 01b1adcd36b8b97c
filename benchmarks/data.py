"""Everything that is measured of the corpus stages, side by side with what a user would take instead.

    make bench-data DATA=/path/to/data            (or: python -m benchmarks.data [NAME ...])

Writes `benchmarks/results/data.json`. Takes the better part of an hour; a name runs one of the benchmarks only.
"""

from __future__ import annotations

import sys

from benchmarks import suite

BENCHMARKS = ("extract", "simplify", "clean", "tokenizers", "shards", "corpus_kills")

if __name__ == "__main__":
    sys.exit(suite.run("data", BENCHMARKS, need_text=BENCHMARKS, names=sys.argv[1:]))
