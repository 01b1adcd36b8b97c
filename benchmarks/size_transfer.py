"""Whether the learning rates that `model.size` gives are the best at every size: a picture and a table of trials.

    python -m benchmarks.size_transfer

Reads `benchmarks/results/size_transfer.json`: machine, date and runs, each of a size, a factor on the rates of the rule
(`mini_chat.model_size`), a seed, the tokens trained on and the bits per byte of held-out text (null where it diverged).
Draws `docs/images/size-transfer.png`: where the rule is right, every size's lowest point is at factor 1.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.results import RESULTS
from mini_chat.files import atomic_open
from mini_chat.plan.plan import amount_of
from mini_chat.report.plots import COLOURS, dress, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "size-transfer.png"
CEILING = 0.12
"""Where the picture ends at the latest; what is worse than that is off it [bits per byte above the best]."""


@dataclass(frozen=True)
class Sweep:
    """The trials of one size.

    Args:
        bpb: factor → bits per byte of each seed, factors ascending; infinite where a run diverged.
    """

    size: int
    tokens: int
    bpb: dict[float, list[float]]

    @property
    def means(self) -> dict[float, float]:
        """Bits per byte of each factor, on average over seeds."""
        return {factor: mean(values) for factor, values in self.bpb.items()}

    @property
    def best(self) -> float:
        """The factor with the fewest bits."""
        return min(self.means, key=lambda factor: self.means[factor])

    @property
    def fitted_best(self) -> float | None:
        """Where the parabola through the best and its neighbours (over the factor's logarithm) is lowest.

        None where the best is at an end of the trials, or beside a run that diverged.
        """
        factors = list(self.means)
        place = factors.index(self.best)
        if not 0 < place < len(factors) - 1:
            return None
        (a, ya), (b, yb), (c, yc) = [(math.log2(x), self.means[x]) for x in factors[place - 1 : place + 2]]
        curve = (b - a) * (yb - yc) - (b - c) * (yb - ya)
        if not math.isfinite(curve) or curve == 0:
            return None
        return 2 ** (b - ((b - a) ** 2 * (yb - yc) - (b - c) ** 2 * (yb - ya)) / (2 * curve))

    @property
    def spread(self) -> float:
        """The widest range of seeds at one factor [bits per byte]; 0 with one seed each."""
        ranges = [max(values) - min(values) for values in self.bpb.values() if math.isfinite(sum(values))]
        return max(ranges, default=0.0)


def sweeps(runs: list[dict[str, Any]]) -> list[Sweep]:
    """The runs by size, ascending."""
    found: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[int, int] = {}
    for run in sorted(runs, key=lambda run: (run["size"], run["lr_factor"], run["seed"])):
        diverged = run["bpb"] is None or not math.isfinite(run["bpb"])
        found[run["size"]][run["lr_factor"]].append(math.inf if diverged else run["bpb"])
        tokens[run["size"]] = run["tokens"]
    return [Sweep(size, tokens[size], dict(bpb)) for size, bpb in found.items()]


def table(found: list[Sweep]) -> str:
    """Sizes by factors: bits per byte, the best of a size with a star, and where a parabola has its best."""
    factors = sorted({factor for sweep in found for factor in sweep.bpb})
    heads = [f"{'×' + fraction(factor):>8}" for factor in factors]
    lines = [f"{'size':>4}{'tokens':>9} {''.join(heads)}{'fitted':>9}{'seeds':>7}{'spread':>9}"]
    for sweep in found:
        cells = [cell(sweep, factor) for factor in factors]
        fitted = "-" if sweep.fitted_best is None else f"×{sweep.fitted_best:.2f}"
        seeds = max(map(len, sweep.bpb.values()))
        end = f"{fitted:>9}{seeds:>7}{sweep.spread:>9.4f}"
        lines.append(f"{sweep.size:>4}{amount_of(sweep.tokens):>9} {''.join(cells)}{end}")
    return "\n".join(lines)


def cell(sweep: Sweep, factor: float) -> str:
    """Bits per byte of a size at a factor."""
    if factor not in sweep.bpb:
        return f"{'':>8}"
    value = sweep.means[factor]
    if not math.isfinite(value):
        return f"{'failed':>8}"
    return f"{value:.3f}{'*' if factor == sweep.best else ''}".rjust(8)


def draw(found: list[Sweep], path: Path) -> None:
    """The picture: a line a size, over the factor, of the bits per byte above the size's best."""
    from matplotlib.figure import Figure

    ink = "#1f2328"
    figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes, "Do the learning rates of a size stay the best ones?", "bits per byte above the size's best", ink)
    for number, (sweep, colour) in enumerate(zip(found, cycle(COLOURS), strict=False)):
        draw_sweep(axes, sweep, colour, ring=50 + 60 * number)
    axes.set_xlabel("learning rates, as a multiple of the rule's", color=ink, fontsize=9)
    factors = sorted({factor for sweep in found for factor in sweep.bpb})
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [fraction(factor) for factor in factors])
    axes.minorticks_off()
    axes.axvline(1.0, color="#888888", linewidth=0.9, linestyle="--", zorder=0)
    highest = max(value - min(s.means.values()) for s in found for value in s.means.values() if math.isfinite(value))
    axes.set_ylim(-0.04 * min(highest, CEILING), 1.04 * min(highest, CEILING))
    finish(axes, ink)
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=125, metadata={"Software": None})


def draw_sweep(axes: Axes, sweep: Sweep, colour: str, ring: float) -> None:
    """A size's line, its seeds as faint dots, its best factor as a ring, which others may lie around."""
    least = sweep.means[sweep.best]
    points = [(factor, value - least) for factor, value in sweep.means.items() if math.isfinite(value)]
    label = f"size {sweep.size}: best {least:.3f} at ×{fraction(sweep.best)}"
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)
    seeds = [(factor, value - least) for factor, values in sweep.bpb.items() if len(values) > 1 for value in values]
    axes.scatter([x for x, _ in seeds], [y for _, y in seeds], s=9, color=colour, alpha=0.35, linewidths=0)
    axes.scatter([sweep.best], [0.0], s=ring, facecolors="none", edgecolors=colour, linewidths=1.8, zorder=3)


def fraction(factor: float) -> str:
    """1/4 for 0.25, 1.41 for the square root of 2."""
    inverse = 1 / factor
    return f"1/{inverse:g}" if factor < 1 and math.isclose(inverse, round(inverse)) else f"{factor:.3g}"


def main() -> None:
    """Draw the picture and print the table."""
    results = json.loads((RESULTS / "size_transfer.json").read_text(encoding="utf-8"))
    found = sweeps(results["runs"])
    draw([sweep for sweep in found if math.isfinite(sweep.means[sweep.best])], PICTURE)
    print(f"{table(found)}\n({results['machine']}, {results['date']})")


if __name__ == "__main__":
    main()
