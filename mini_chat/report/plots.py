"""The curves of a run: inline SVG for the page, whose text takes the page's colour, and one picture for a README."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_chat.files import atomic_open
from mini_chat.report.words import language_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own text colour in SVG
COLOURS = ("#2f81f7", "#e5734b", "#3fa650", "#a371f7", "#c69026")  # readable on white and on black
LOSS_NAMES = {"dpo": "loss [per pair]"}


@dataclass
class Curve:
    """One line of a plot over the tokens trained on."""

    tokens: list[float]
    values: list[float]


@dataclass
class StageMetrics:
    """A stage's metrics.jsonl, read once."""

    stage: str
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, directory: Path, stage: str) -> StageMetrics:
        """Read the stage's records; a line that is none (a torn last one) is passed over."""
        path, records = directory / stage / "metrics.jsonl", []
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
        return cls(stage, records)

    def curve(self, key: str) -> Curve:
        """A measure over the tokens seen until then."""
        import numpy as np

        counted = [(record["step"], record["tokens"]) for record in self.records if "tokens" in record]
        found = [(record["step"], record[key]) for record in self.records if key in record]
        if not counted or not found:
            return Curve([], [])
        steps, tokens = zip(*sorted({(0, 0), *counted}), strict=True)
        return Curve([float(np.interp(step, steps, tokens)) for step, _ in found], [value for _, value in found])

    def begin(self, key: str, value: float) -> None:
        """Put what was measured before the first step in front of a validation measure's curve."""
        if any(key in record for record in self.records):
            self.records.insert(0, {"step": 0, key: value})

    @property
    def validations(self) -> list[str]:
        """Names of the validation measures."""
        return sorted({key for record in self.records for key in record if key.startswith("valid_")})

    @property
    def tokens(self) -> float:
        """Tokens trained on in all."""
        return max((record["tokens"] for record in self.records if "tokens" in record), default=0)


def new_axes(title: str, y: str) -> tuple[Figure, Axes]:
    """An empty plot over tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.9), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, title, y)
    return figure, axes


def dress(axes: Axes, title: str, y: str, ink: str = INK) -> None:
    """Title, labels and a quiet frame."""
    from matplotlib.ticker import FuncFormatter

    axes.set_title(title, color=ink, fontsize=10)
    axes.set_xlabel("tokens trained on", color=ink, fontsize=9)
    axes.set_ylabel(y, color=ink, fontsize=9)
    axes.tick_params(colors=ink, labelsize=8)
    axes.grid(alpha=0.25, color="#888888", linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color("#888888")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}M" if value else "0"))


def draw(axes: Axes, curve: Curve, label: str, colour: str, offset: float = 0, marks: bool = False) -> None:
    """One line."""
    tokens = [offset + value for value in curve.tokens]
    marker = "o" if marks else ""
    axes.plot(tokens, curve.values, label=label, color=colour, linewidth=1.6, marker=marker, markersize=3.5)


def finish(axes: Axes, ink: str = INK) -> None:
    """The legend, where there is more than one line."""
    if len(axes.lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=ink)


def validation_label(key: str) -> str:
    """valid_bpb_zh → Chinese."""
    name = key.removeprefix("valid_")
    return language_name(name.removeprefix("bpb_")) if name.startswith("bpb_") else name.replace("_", " ")


def page_plots(metrics: Sequence[StageMetrics]) -> dict[str, str]:
    """Every plot of the page as SVG, under its title."""
    plots: dict[str, str] = {}
    for stage in metrics:
        if stage.curve("loss").values:
            title = f"{stage.stage}: training loss"
            figure, axes = new_axes(title, LOSS_NAMES.get(stage.stage, "loss [nats per token]"))
            draw(axes, stage.curve("loss"), "training", COLOURS[0])
            plots[title] = to_svg(figure, axes)
        if stage.validations:
            bits = stage.validations[0].startswith("valid_bpb")
            title = f"{stage.stage}: held-out " + ("bits per byte" if bits else "preference accuracy")
            figure, axes = new_axes(title, "bits per byte" if bits else "share of pairs")
            for colour, key in zip(COLOURS[1:], stage.validations, strict=False):
                draw(axes, stage.curve(key), validation_label(key), colour, marks=True)
            axes.set_xlim(left=0)
            plots[title] = to_svg(figure, axes)
    for key, title, y in (
        ("lr", "learning rate (AdamW's part)", "learning rate"),
        ("tokens_per_second", "training speed", "tokens per second"),
        ("share_of_limit", "share of the machine's matrix-product rate", "share"),
    ):
        if any(stage.curve(key).values for stage in metrics):
            figure, axes = new_axes(title, y)
            offset = 0.0
            for colour, stage in zip(COLOURS, metrics, strict=False):
                draw(axes, stage.curve(key), stage.stage, colour, offset)
                offset += stage.tokens
            top = {"share_of_limit": 1.0, "tokens_per_second": 1.15 * axes.dataLim.y1}.get(key)
            if top is not None:
                axes.set_ylim(0, top)
            plots[title] = to_svg(figure, axes)
    return plots


def to_svg(figure: Figure, axes: Axes) -> str:
    """The figure as an `<svg>` element: text stays text, no address in it, the same bytes every time."""
    import matplotlib

    finish(axes)
    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": axes.get_title(), "font.family": ["sans-serif"]}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows what svg is
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{axes.get_title()}"', 1)


def write_picture(metrics: Sequence[StageMetrics], path: Path) -> None:
    """`loss.png`: the training loss of pretraining and SFT on the left, bits per byte of held-out text on the right."""
    from matplotlib.figure import Figure

    ink = "#1f2328"
    figure = Figure(figsize=(9.6, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    dress(left, "training loss", "nats per token", ink)
    dress(right, "held-out text of each stage", "bits per byte", ink)
    offset = 0.0
    for number, stage in enumerate(metrics):
        if stage.stage in LOSS_NAMES:
            continue
        draw(left, stage.curve("loss"), stage.stage, COLOURS[number], offset)
        for style, key in zip(("-", "--", ":"), stage.validations, strict=False):
            curve = stage.curve(key)
            tokens = [offset + value for value in curve.tokens]
            label = f"{stage.stage}, {validation_label(key)}"
            right.plot(tokens, curve.values, style, marker="o", markersize=3.5, color=COLOURS[number], label=label)
        offset += stage.tokens
    right.set_xlim(left=0)
    finish(left, ink)
    finish(right, ink)
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=125, metadata={"Software": None})
