"""metrics.jsonl: after a crash, exactly the records of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mini_chat.trainer.metrics import Metrics


def records(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest_fail(name)) for line in lines]


def pytest_fail(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(1, loss=2.0)
    offset = metrics.flush()
    metrics.write(2, loss=1.5)
    metrics.close()
    metrics = Metrics(tmp_path, offset, 1)
    assert metrics.flush() == offset, "a checkpoint before the next record must remember the same place"
    metrics.write(2, loss=1.4)
    metrics.close()
    assert records(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.4}]


def test_two_resumes_without_a_record_between_leave_no_hole(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(1, loss=2.0)
    offset = metrics.flush()
    metrics.write(2, loss=1.5)
    metrics.close()
    for _ in range(2):
        metrics = Metrics(tmp_path, offset, 1)
        offset = metrics.flush()
        metrics.close()
    assert records(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_lost_file_begins_anew(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, offset=500, step=3)
    metrics.write(4, loss=1.0)
    metrics.close()
    assert records(tmp_path) == [{"step": 4, "loss": 1.0}]


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(1, loss=float("nan"), grad_norm=float("inf"), samples="你好")
    metrics.close()
    assert records(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "samples": "你好"}]
