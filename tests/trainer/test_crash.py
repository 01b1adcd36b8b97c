"""Kill any stage at any instant: the same command goes on, and writes bit for bit what an undisturbed run writes.

Two ways of dying: kill -9 at random instants, and at each operation on a file in turn, the first, the second, …: those
are the instants at which something half done could be taken for whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import crash
import pytest
import yaml

from mini_chat.config import Recipe
from mini_chat.data.token_shards import TokenDocuments
from mini_chat.files import sha256_file
from mini_chat.trainer.checkpoint import read_state

STAGES = ("pretrain", "sft", "dpo")
BEFORE = {"tokenizer": (), "shards": ("tokenizer",), "pretrain": ("tokenizer", "shards")}
BEFORE |= {"sft": (*BEFORE["pretrain"], "pretrain"), "dpo": (*BEFORE["pretrain"], "pretrain", "sft")}


@pytest.fixture(scope="module", autouse=True)
def _preload() -> None:
    crash.preload()
    assert crash.finish(["--version"], Path(os.devnull)) == 0


@pytest.fixture
def run(finished_run: Recipe, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The directory of a run in which everything before the stage (the test's parameter) is finished."""
    directory = tmp_path / "run"
    directory.mkdir()
    before = BEFORE[request.node.callspec.params["stage"]]
    for name in before:
        shutil.copytree(finished_run.directory / name, directory / name)
    if before:
        shutil.copy2(finished_run.directory / "tokenizer.json", directory)
    recipe = finished_run.model_dump() | {"out": str(directory)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return directory


def command(run: Path, stage: str) -> list[str]:
    return [stage, str(run.parent / "recipe.yaml")]


def bits(directory: Path, stage: str) -> dict[str, str]:
    """Checksums of what a stage leaves for the next ones."""
    names = {
        "tokenizer": ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
        "shards": sorted(path.name for path in (directory / "shards").glob("*.ds")),
    }.get(stage, ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
    return {name: sha256_file(directory / stage / name) for name in names}


def assert_clean(run: Path, stage: str) -> None:
    """No leftover of a killed process, and every record of the metrics once."""
    assert not [path for path in run.rglob("*") if path.suffix in {".partial", ".replaced"} or path.name == "scratch"]
    if stage not in STAGES:
        return
    lines = (run / stage / "metrics.jsonl").read_bytes().decode().splitlines()
    records = [json.loads(line) for line in lines]
    kinds = [(record["step"], "loss" in record) for record in records]
    assert len(kinds) == len(set(kinds))
    steps = [step for step, is_training in kinds if is_training]
    assert steps == sorted(steps)


@pytest.mark.parametrize("stage", STAGES)
def test_kills_at_random_instants_change_no_bit(stage: str, run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    longer = [*command(run, stage), f"--{stage}.steps", "30"]
    whole = crash.timed(longer, log)
    undisturbed = bits(run, stage)
    shutil.rmtree(run / stage)
    draw, kills = random.Random(stage), 0
    while kills < 4:
        status = crash.kill_after(longer, log, draw.uniform(0.1, 0.8) * whole)
        if status == -signal.SIGKILL:
            kills += 1
            continue
        assert status == 0 and bits(run, stage) == undisturbed, log.read_text()
        shutil.rmtree(run / stage)  # it ended first
        whole *= 0.8
    assert crash.finish(longer, log) == 0, log.read_text()
    assert bits(run, stage) == undisturbed
    assert "Traceback" not in log.read_text()
    assert_clean(run, stage)


@pytest.mark.parametrize("stage", ["tokenizer", "shards", *STAGES])
def test_a_kill_at_any_operation_on_a_file_changes_no_bit(
    stage: str, run: Path, finished_run: Recipe, tmp_path: Path
) -> None:
    """Each process dies one operation later than the one before it, and goes on from what that one left."""
    log, deaths, least = tmp_path / "log", 0, 8
    for number in range(1, 200):
        status = crash.finish(command(run, stage), log, die_at=number)
        assert status in {0, -signal.SIGKILL}, log.read_text()
        if status == 0:
            break
        deaths += 1
    assert status == 0 and deaths >= least
    assert bits(run, stage) == bits(finished_run.directory, stage)
    assert "Traceback" not in log.read_text()
    assert_clean(run, stage)
    if stage in STAGES:
        for path in (run / stage / "state").iterdir():
            assert read_state(path)[1] == ""
    elif stage == "shards":
        TokenDocuments(run / stage, "train", verify=True)


@pytest.mark.parametrize("stage", ["sft"])
def test_no_kill_while_a_model_is_replaced_passes_a_mixture_off_as_finished(
    stage: str, run: Path, finished_run: Recipe, tmp_path: Path
) -> None:
    """A second training of other settings writes over the first one's files; `stage.json` vouches for none between."""
    shutil.copytree(finished_run.directory / stage, run / stage)
    old, log = bits(run, stage), tmp_path / "log"
    shutil.rmtree(run / stage / "state")
    changed = [*command(run, stage), "--sft.lr_max", "0.01"]
    seen = set()
    for number in range(1, 200):
        status = crash.finish(changed, log, die_at=number)
        if (run / stage / "stage.json").is_file():
            recorded = json.loads((run / stage / "stage.json").read_text())
            now = bits(run, stage)
            assert recorded["sha256"]["model.safetensors"] == now["model.safetensors"]
            assert (recorded["identity"]["lr_max"] == 0.01) == (now != old)
            seen.add(now == old)
        if status == 0:
            break
    assert status == 0 and seen == {True, False}, log.read_text()


@pytest.mark.parametrize("stage", ["pretrain"])
def test_sigterm_ends_with_status_75_and_the_same_command_goes_on(
    stage: str, run: Path, finished_run: Recipe, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    slow = [*command(run, stage), "--pretrain.steps", "2000", "--pretrain.checkpoint_every", "5000"]
    with crash.started(slow, log) as process:
        metrics = run / stage / "metrics.jsonl"
        for _ in range(600):
            process.join(0.05)
            if (metrics.is_file() and "step" in log.read_text()) or process.exitcode is not None:
                break
        process.terminate()
        process.join(60)
        assert process.exitcode == 75, log.read_text()
    (state,) = (run / stage / "state").iterdir()
    step = int(state.name.removeprefix("step-"))
    assert 0 < step < 2000
    last = log.read_text().splitlines()[-1]
    assert last == f"mini-chat pretrain: stopped at step {step} of 2000, saved; the same command goes on from here"
    assert read_state(state)[1] == ""
    assert crash.kill_after(slow, log, 2.0, signal.SIGTERM) == 75
    assert f"pretrain: going on from step {step} of 2000" in log.read_text()


@pytest.mark.parametrize("stage", ["pretrain"])
def test_a_second_process_on_one_run_refuses(stage: str, run: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with crash.started([*command(run, stage), "--pretrain.steps", "2000"], first) as process:
        for _ in range(600):
            process.join(0.05)
            if (run / stage / "metrics.jsonl").is_file() or process.exitcode is not None:
                break
        assert process.exitcode is None, first.read_text()
        assert crash.finish(command(run, stage), second) == 1
    assert second.read_text() == (
        f"mini-chat pretrain: error: {run}: another mini-chat process is working here; "
        "wait for it or choose another directory\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain"])
def test_kills_of_a_compiled_run_change_no_bit(stage: str, run: Path, tmp_path: Path) -> None:
    """Each process compiles anew, or takes the code from the disk: the bits are the same."""
    log = tmp_path / "log"
    compiled = [*command(run, stage), "--pretrain.steps", "30", "--machine.compile", "on"]
    assert crash.finish(compiled, log) == 0, log.read_text()
    undisturbed = bits(run, stage)
    shutil.rmtree(run / stage)
    whole = crash.timed(compiled, log)
    shutil.rmtree(run / stage)
    kills = [crash.kill_after(compiled, log, share * whole) for share in (0.6, 0.7)]
    assert -signal.SIGKILL in kills
    assert crash.finish(compiled, log) == 0, log.read_text()
    assert bits(run, stage) == undisturbed
    assert "without torch.compile" not in log.read_text()
