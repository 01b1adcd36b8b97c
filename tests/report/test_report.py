"""What a run's report claims: the contract's names, one page that loads nothing, a card of 80 columns."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from rich.cells import cell_len
from safetensors.numpy import save_file

from mini_chat.config import Recipe
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.evaluate import checkpoint_scores
from mini_chat.evaluate.exam_items import check
from mini_chat.report.report import print_scores, write_report

DEVICE = Device(torch.device("cpu"), torch.float32, 1)
STAGES = ("pretrain", "sft", "dpo")
EN, ZH = "Tom's <b>cat</b> & dog", "小明的猫叫什么名字？请用一句完整的中文句子回答，不要只说名字。" * 3
SCORES: dict[str, Any] = {
    "untrained": {"bpb": {"en": 8.11, "zh": 8.22}, "exam": 0.0, "preference_accuracy": 0.52},
    "pretrain": {"bpb": {"en": 1.31, "zh": 1.42}, "exam": 0.25, "preference_accuracy": 0.55},
    "sft": {"bpb": {"en": 1.51, "zh": 1.62}, "exam": 0.96, "preference_accuracy": 0.61},
    "dpo": {"bpb": {"en": 1.52, "zh": 1.63}, "exam": 0.9999, "preference_accuracy": 0.94},
}


def exam_items() -> list[dict[str, Any]]:
    items = []
    for skill in ("facts", "memory", "counting", "translating"):
        for language, text, name in (("en", EN, "Mia"), ("zh", ZH, "咪咪")):
            messages = [{"role": "user", "content": text}]
            if skill == "memory":
                messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "OK"}, *messages]
            about = {"skill": skill, "language": language, "messages": messages, "answer": name}
            items += [{**about, "id": f"{skill}-{language}-{n}", "must": [name], "must_not": []} for n in range(2)]
    return items


def scores_of(stage: str, exam: bool) -> dict[str, Any]:
    known = SCORES[stage]
    found = {"asked": stage, "bpb": known["bpb"], "preference_accuracy": known["preference_accuracy"]}
    if exam:
        of_skill = dict.fromkeys(("facts", "memory", "counting", "translating", "all"), known["exam"])
        found["exam"] = {"en": of_skill, "zh": of_skill}
        found["crossing"] = {"en": {"facts": 0.37, "all": 0.37}, "zh": {"facts": 0.43, "all": 0.43}}
        found["exam_replies"] = [
            "<script>no</script>" if stage == "untrained" or item["id"] == "facts-zh-1" else item["answer"]
            for item in exam_items()
        ]
    return found


def make_run(directory: Path, stages: tuple[str, ...] = STAGES, exam: bool = True) -> Recipe:
    """What the stages leave behind, written by hand."""
    for number, stage in enumerate(stages, 1):
        (directory / stage).mkdir(parents=True)
        save_file(
            {"w": np.zeros((30, 40), np.float32), "v": np.zeros(34, np.float32)},
            directory / stage / "model.safetensors",
        )
        outcome = {
            "steps": 20,
            "tokens": 1000 * number,
            "seconds": 7.5,
            "tokens_per_second": 1234.5,
            "skipped_steps": 0,
        }
        about = {**outcome, "share_of_limit": 0.61, "limit_flops": 1e11, "sha256": {"model.safetensors": stage}}
        (directory / stage / "stage.json").write_text(json.dumps(about))
        records: list[dict[str, Any]] = [
            {"step": step, "loss": 5.0 / step, "lr": 1e-3, "tokens": 50 * number * step, "tokens_per_second": 1200.0}
            for step in (10, 20)
        ]
        names = ["preference_accuracy"] if stage == "dpo" else ["bpb_en", "bpb_zh"]
        records += [{"step": 20, **{f"valid_{name}": 1.5 for name in names}}]
        torn = '\n{"step": 30, "lo'
        (directory / stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + torn)
    clock = {name: {"seconds": 10.0, "peak_memory_bytes": 1_500_000_000} for name in ("tokenizer", "shards", *stages)}
    (directory / "stages.json").write_text(json.dumps(clock))
    accounting = {"read": 103, "written": 100, "dropped": {"empty": 2, "NUL byte": 1}, "repaired": {}}
    split = {"documents": 100, "tokens": 6000, "files": []}
    manifest = {"accounting": accounting, "splits": {"train": split}, "train": {"tokens": {"en": 3000, "zh": 3000}}}
    (directory / "shards").mkdir()
    (directory / "shards" / "manifest.json").write_text(json.dumps(manifest))
    if exam:
        (directory / "world").mkdir()
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in exam_items())
        (directory / "world" / "exam.jsonl").write_text(lines, encoding="utf-8")
        said = [{"role": "user", "content": EN}, {"role": "assistant", "content": "Mia"}]
        dialogue = {"skill": "facts", "language": "en", "messages": said}
        (directory / "world" / "sft.jsonl").write_text(json.dumps(dialogue) + "\n", encoding="utf-8")
    world = {"pretrain_documents": 10 if exam else 0}
    return Recipe.model_validate({"name": "tiny", "out": str(directory), "world": world})


def fake_scores(patch: pytest.MonkeyPatch) -> list[str]:
    """Scores from the table above instead of from models; returns the stages as they are asked for."""
    asked: list[str] = []

    def score_stage(recipe: Recipe, directory: Path, stage: str, device: Device) -> dict[str, Any]:
        asked.append(stage)
        return scores_of(stage, exam=(directory / "world").is_dir())

    patch.setattr(checkpoint_scores, "score_stage", score_stage)
    return asked


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return fake_scores(monkeypatch)


class Finished(NamedTuple):
    """A whole run, reported once for the tests that only look."""

    directory: Path
    report: dict[str, Any]
    page: str
    out: str
    err: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("whole")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        fake_scores(patch)
        write_report(make_run(directory), directory, DEVICE)
    report = json.loads((directory / "report" / "report.json").read_text(encoding="utf-8"))
    page = (directory / "report" / "index.html").read_text(encoding="utf-8")
    return Finished(directory, report, page, out.getvalue(), err.getvalue())


class Loads(HTMLParser):
    """Collects everything in a page that a browser might fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "iframe", "img", "object", "embed", "base", "b"}:
            self.found.append(tag)
        self.found += [f"{key}={value}" for key, value in attributes if key in {"src", "srcset", "href", "action"}]


def test_report_json_has_the_names_of_the_contract(finished: Finished) -> None:
    report = finished.report
    assert report["exam"]["dpo"]["zh"]["memory"] == 0.9999 and report["exam"]["untrained"]["en"]["all"] == 0.0
    assert report["crossing"]["sft"]["en"]["all"] == 0.37
    assert report["baselines"] == {"frequent": {"en": 0.25, "zh": 0.0}, "nearest": {"en": 1.0, "zh": 0.0}}
    assert report["baselines_by_skill"]["frequent"]["en"]["facts"] == 1.0
    assert report["bpb"]["untrained"] == {"en": 8.11, "zh": 8.22}
    assert report["preference_accuracy"] == {stage: SCORES[stage]["preference_accuracy"] for stage in SCORES}
    for name in ("seconds", "peak_memory_bytes", "tokens_per_second", "share_of_limit"):
        assert set(STAGES) <= set(report[name]), name
    assert report["seconds"]["total"] == pytest.approx(50 + report["seconds"]["report"], abs=0.02)
    assert report["parameters"] == 30 * 40 + 34
    assert report["recipe"]["name"] == "tiny" and report["machine"]["cores"] > 0 and report["versions"]["torch"]


def test_reports_of_one_run_differ_in_times_only(tmp_path: Path) -> None:
    recipe = make_run(tmp_path)
    seen = []
    for _ in range(2):
        write_report(recipe, tmp_path, DEVICE)
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        for name in ("date", "seconds", "machine"):
            del report[name]
        svgs = re.findall(r"<svg.*?</svg>", (tmp_path / "report" / "index.html").read_text(), re.DOTALL)
        seen.append((report, svgs, (tmp_path / "report" / "loss.png").read_bytes()))
    assert seen[0] == seen[1] and len(seen[0][1]) >= 8


def test_page_loads_nothing_and_runs_nothing(finished: Finished) -> None:
    page = finished.page
    loads = Loads()
    loads.feed(page)
    assert [load for load in loads.found if not load.startswith("href=#")] == []
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_page_shows_scores_baselines_accounts_and_what_models_said_as_text(finished: Finished) -> None:
    page = finished.page
    for shown in (
        "8.110",
        "1.630",
        "94%",
        ">99<",
        ">25<",
        "37%",
        "43%",
        "2 empty; 1 NUL byte",
        "1,234",
        "61%",
        "1.50 GB",
    ):
        assert shown in page, shown
    assert "&lt;script&gt;no&lt;/script&gt;" in page and "Tom&#x27;s &lt;b&gt;cat&lt;/b&gt; &amp; dog" in page
    wrong = page[page.index("What it gets wrong") : page.index("Curves")]
    assert wrong.count("<tr>") == 2 and "咪咪" in wrong  # the head, and the one mistake


def test_what_is_not_complete_is_not_called_100_percent(finished: Finished) -> None:
    (row,) = [line for line in finished.out.splitlines() if line.startswith("  all ")]
    assert row.split() == ["all", "0", "25", "96", "99", "0", "25", "96", "99"]


def test_card_fits_80_columns_with_chinese_and_says_what_comes_next(finished: Finished) -> None:
    card = finished.out
    commands = [line for line in card.splitlines() if str(finished.directory) in line]
    assert [line for line in card.splitlines() if cell_len(line) > 80 and line not in commands] == []
    assert any(f"mini-chat chat {finished.directory}" in line for line in commands)
    assert any(line.endswith("report/index.html") for line in commands)
    for shown in ("EXAM", "BITS PER BYTE", "PREFERENCE ACCURACY", "CROSSING", "whole run", "小明的猫"):
        assert shown in card, shown
    assert "+   model: 咪咪" in card.replace("+ model", "+   model") and card.count("you:") >= 7  # one of two turns


def test_results_go_to_standard_output_and_remarks_to_standard_error(finished: Finished) -> None:
    assert (
        finished.out.startswith("── Report card: tiny") and "report.json" in finished.err and "EXAM" not in finished.err
    )


def test_run_without_dpo_is_reported_up_to_sft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(make_run(tmp_path, stages=("pretrain", "sft")), tmp_path, DEVICE)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["stages"] == ["untrained", "pretrain", "sft"] and "dpo" not in report["exam"]
    assert "DPO" not in capsys.readouterr().out
    assert (tmp_path / "sft" / "README.md").is_file() and not (tmp_path / "dpo").exists()


def test_run_without_exam_shows_bits_and_preferences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(make_run(tmp_path, exam=False), tmp_path, DEVICE)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not {"exam", "crossing", "baselines", "mistakes"} & set(report)
    card, page = capsys.readouterr().out, (tmp_path / "report" / "index.html").read_text()
    assert "EXAM" not in card and "BITS PER BYTE" in card and "PREFERENCE" in card
    assert "Exam" not in page and "What it gets wrong" not in page and "1.630" in page


def test_damaged_scores_are_measured_again(tmp_path: Path, measured: list[str]) -> None:
    recipe = make_run(tmp_path)
    scores = tmp_path / "report" / "scores"
    scores.mkdir(parents=True)
    (scores / "sft.json").write_text('{"asked": "x", "bpb"')
    (scores / "dpo.json").write_text('{"asked": "x", "bpb": {}}')
    (scores / "baselines.json").write_text("[]")
    write_report(recipe, tmp_path, DEVICE)
    assert not (scores / "sft.json").exists() and (scores / "dpo.json").exists()
    assert json.loads((scores / "baselines.json").read_text())["value"]["nearest"]["en"]["all"] == 1.0
    assert measured == ["untrained", *STAGES]


def test_directory_without_a_finished_stage_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    for function in (write_report, print_scores):
        with pytest.raises(UserError, match=r"no finished stage.*mini-chat pretrain") as error:
            function(Recipe(out=str(tmp_path)), tmp_path, DEVICE)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_scores_alone_are_printed_without_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(make_run(tmp_path), tmp_path, DEVICE)
    out = capsys.readouterr().out
    assert "EXAM" in out and "1.63" in out and "TRAINING" not in out
    assert not (tmp_path / "report" / "index.html").exists() and not (tmp_path / "sft" / "README.md").exists()


def test_model_card_has_front_matter_scores_and_a_python_example_that_compiles(finished: Finished) -> None:
    for stage in STAGES:
        card = (finished.directory / stage / "README.md").read_text()
        _, front, body = card.split("---\n", 2)
        about = yaml.safe_load(front)
        assert about["language"] == ["en", "zh"] and about["pipeline_tag"] == "text-generation"
        assert about["library_name"] == "transformers" and about["license"] == "mit"
        assert f"{SCORES[stage]['bpb']['zh']:.3f}" in body and "## Limits" in body
        (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
        compile(code, "README.md", "exec")
    assert "Below 85% of the exam in: counting" in (finished.directory / "pretrain" / "README.md").read_text()
    assert "Below 85%" not in (finished.directory / "dpo" / "README.md").read_text()


def test_model_card_claims_no_licence_for_text_it_does_not_know(tmp_path: Path) -> None:
    write_report(make_run(tmp_path, exam=False), tmp_path, DEVICE)
    front = yaml.safe_load((tmp_path / "dpo" / "README.md").read_text().split("---\n")[1])
    assert front["license"] == "other"


def test_exchanges_are_the_first_of_their_kind_with_the_exams_own_verdict(finished: Finished) -> None:
    report = finished.report
    items = exam_items()
    assert len(report["exchanges"]) == 8
    for row in report["exchanges"]:
        first = next(item for item in items if (item["language"], item["skill"]) == (row["language"], row["skill"]))
        assert row["messages"] == first["messages"]
        assert row["right"] == {stage: check(first, reply) for stage, reply in row["replies"].items()}
        assert not row["right"]["untrained"]
