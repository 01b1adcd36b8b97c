"""Everything that is measured of training: how fast, how good, what survives, and how far the plan is off.

    make bench-train DATA=/path/to/data            (or: python -m benchmarks.train [NAME ...])

Writes `benchmarks/results/train.json`, and `train_curves.json` beside it. Takes some two hours on two cores, and the
machine should do nothing else meanwhile. A name runs one of the benchmarks only; DATA is for train_quality.
"""

from __future__ import annotations

import sys

from benchmarks import suite

BENCHMARKS = ("train_speed", "train_quality", "train_kills", "plan_check", "train_processes")

if __name__ == "__main__":
    sys.exit(suite.run("train", BENCHMARKS, need_text=("train_quality",), names=sys.argv[1:]))
