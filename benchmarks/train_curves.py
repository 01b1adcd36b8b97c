"""The curves of `benchmarks.train_quality`: held-out bits per byte over seconds of training, kept and drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from benchmarks.results import RESULTS
from mini_chat.report.plots import COLOURS

PATH = RESULTS / "train_curves.json"
PICTURE = RESULTS.parent.parent / "docs" / "images" / "pretraining-curves.png"
LINES = {  # name → legend, colour, style; the two of ours are one loop given other times
    "plain": ("plain loop, 15 min", COLOURS[1], "-"),
    "strong": ("strong loop, 10 min", COLOURS[2], "-"),
    "ours_45s": ("Mini-Chat, 45 s", COLOURS[0], "--"),
    "ours_5min": ("Mini-Chat, 5 min", COLOURS[0], "-"),
}
INK, GRID = "#1f2328", "#d8dee4"

Curve = list[list[float]]
"""[seconds of training, bits per byte] at each validation."""


def write(curves: Mapping[str, Curve]) -> None:
    """Lay the curves over those that are kept already, a line each in the file."""
    earlier = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
    lines = [
        f"  {json.dumps(name)}: {json.dumps([[round(s, 2), round(bpb, 5)] for s, bpb in curve])}"
        for name, curve in {**earlier, **curves}.items()
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def draw() -> int:
    """Draw the picture of the documentation; returns the exit status."""
    if not PATH.is_file():
        print("train_quality: error: no curves are measured yet; run make bench-train DATA=...", file=sys.stderr)
        return 1
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    curves: dict[str, Curve] = json.loads(PATH.read_text(encoding="utf-8"))
    figure = Figure(figsize=(8.0, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for name, (label, colour, style) in LINES.items():
        if name in curves:
            seconds, bpb = zip(*curves[name], strict=True)
            axes.plot(seconds, bpb, style, color=colour, label=label, linewidth=2, marker="o", markersize=3.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([2, 5, 10, 20, 45, 100, 300, 600, 900]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("seconds of training (log scale)", color=INK, fontsize=12)
    axes.set_ylabel("held-out bits per byte", color=INK, fontsize=12)
    axes.tick_params(colors=INK, labelsize=11)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=12)
    figure.savefig(PICTURE, dpi=125, metadata={"Software": None})
    print(f"written to {PICTURE}")
    return 0
