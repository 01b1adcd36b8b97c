"""The report: measure every finished stage on held-out data, and say it as a card, a page, a model card and JSON."""

from __future__ import annotations

import time
from pathlib import Path

from mini_chat.config import Recipe
from mini_chat.console import say
from mini_chat.device import Device
from mini_chat.files import atomic_open, write_json
from mini_chat.report.card import print_lines, render_card, render_scores
from mini_chat.report.gather import gather_report, gather_scores
from mini_chat.report.model_card import render_model_card
from mini_chat.report.page import render_page
from mini_chat.report.plots import StageMetrics, page_plots, write_picture
from mini_chat.report.words import Report


def write_report(recipe: Recipe, directory: Path, device: Device) -> None:
    """Write `report/` (`report.json` last) and a `README.md` into each finished stage; print the report card.

    Raises:
        UserError: no stage is finished, or something that it left is missing or damaged.
    """
    began = time.monotonic()
    out = directory / "report"
    report = gather_report(recipe, directory, device)
    stages = report["stages"][1:]
    metrics = [StageMetrics.read(directory, stage) for stage in stages]
    begin_curves(report, metrics)
    write_picture(metrics, out / "loss.png")
    plots = page_plots(metrics)
    for stage in stages:
        write_text(directory / stage / "README.md", render_model_card(report, stage))
    # The pipeline adds this stage's time to stages.json only when it has ended, so it is counted here.
    seconds = report["seconds"]
    seconds["report"] = round(seconds.get("report", 0.0) + time.monotonic() - began, 2)
    seconds["total"] = round(sum(seconds.values()), 2)
    write_text(out / "index.html", render_page(report, plots, directory))
    write_json(out / "report.json", report)
    say(f"report: {out / 'report.json'}, {out / 'index.html'}, {out / 'loss.png'}")
    print_lines(render_card(report, directory).split("\n"))


def begin_curves(report: Report, metrics: list[StageMetrics]) -> None:
    """Let validation curves begin with the score of the model that the stage began with, where it is the same measure.

    It is for pretraining's text and DPO's pairs; SFT validates on dialogues, which nothing else measures.
    """
    for before, stage in zip(report["stages"], metrics, strict=False):
        if stage.stage == "pretrain":
            for language, bits in report["bpb"][before].items():
                stage.begin(f"valid_bpb_{language}", bits)
        if before in (accuracy := report.get("preference_accuracy", {})):
            stage.begin("valid_preference_accuracy", accuracy[before])


def print_scores(recipe: Recipe, directory: Path, device: Device) -> None:
    """Print the scores of every finished stage.

    Raises:
        UserError: no stage is finished, or something that it left is missing or damaged.
    """
    scores, _ = gather_scores(recipe, directory, device)
    print_lines(render_scores(scores))


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with atomic_open(path, "w") as file:
        file.write(text)
