"""What is gathered of a real run: measured scores and the models' own answers, kept until the weights change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mini_chat.chat.engine import ChatEngine
from mini_chat.config import Recipe
from mini_chat.device import Device
from mini_chat.report.gather import gather_report
from mini_chat.report.plots import StageMetrics
from mini_chat.report.report import begin_curves, write_report

PROMPTS = ["What does Tom 3 have?", "小王1有什么？"]


@pytest.fixture(scope="module")
def run(finished_run: Recipe, device: Device, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A copy of the finished run with its report."""
    directory = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run.directory, directory)
    recipe = finished_run.model_copy(update={"samples": PROMPTS, "out": str(directory)})
    write_report(recipe, directory, device)
    return recipe, directory


def written(run: tuple[Recipe, Path]) -> dict[str, Any]:
    return json.loads((run[1] / "report" / "report.json").read_text(encoding="utf-8"))


def test_every_stage_of_a_real_run_is_measured(run: tuple[Recipe, Path]) -> None:
    report = written(run)
    assert report["stages"] == ["untrained", "pretrain", "sft", "dpo"]
    assert report["bpb"]["pretrain"]["zh"] < report["bpb"]["untrained"]["zh"]
    assert set(report["preference_accuracy"]) == set(report["stages"])
    assert report["tokens"]["pretrain"] > 0 and report["parameters"] > 2 * 32 * 64
    for account in report["accounts"].values():
        assert account["read"] == account["written"] + sum(account["dropped"].values())


def test_samples_are_the_last_models_own_answers(run: tuple[Recipe, Path]) -> None:
    recipe, directory = run
    engine = ChatEngine.load(directory / "dpo", "cpu")
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = engine.generate_batch(messages, max_new_tokens=recipe.evaluate.max_new_tokens)
    rows = written(run)["samples"]
    assert [row["prompt"] for row in rows] == PROMPTS and [row["replies"]["dpo"] for row in rows] == answers


def test_second_report_measures_nothing_again(
    run: tuple[Recipe, Path], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mini_chat.trainer.stage.load_model", no_model)
    monkeypatch.setattr("mini_chat.evaluate.checkpoint_scores.load_model", no_model)
    again, before = gather_report(*run, device), written(run)
    for name in ("bpb", "preference_accuracy", "samples", "accounts", "tokens", "parameters"):
        assert again[name] == before[name]


def test_curves_of_a_real_run_reach_the_page(run: tuple[Recipe, Path]) -> None:
    page = (run[1] / "report" / "index.html").read_text(encoding="utf-8")
    for title in ("pretrain: training loss", "sft: held-out bits per byte", "dpo: held-out preference accuracy"):
        assert f'aria-label="{title}"' in page
    assert (run[1] / "report" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_validation_curves_begin_where_the_stage_began(run: tuple[Recipe, Path]) -> None:
    report, directory = written(run), run[1]
    metrics = [StageMetrics.read(directory, stage) for stage in ("pretrain", "sft", "dpo")]
    begin_curves(report, metrics)
    pretrain, sft, dpo = metrics
    start = pretrain.curve("valid_bpb_zh")
    assert start.tokens[0] == 0 and start.values[0] == report["bpb"]["untrained"]["zh"]
    assert start.tokens[-1] == report["tokens"]["pretrain"]
    assert start.values[-1] == pytest.approx(report["bpb"]["pretrain"]["zh"], rel=1e-3)  # so it is the same measure
    assert dpo.curve("valid_preference_accuracy").values[0] == report["preference_accuracy"]["sft"]
    assert 0 not in sft.curve("valid_bpb_zh").tokens
