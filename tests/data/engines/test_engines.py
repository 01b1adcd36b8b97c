"""The corpus steps write the same bytes on our own processes, on datatrove's local executor, on Slurm and on Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm
from tiny import chinese, english, write_jsonl

from mini_chat.cli import Arguments
from mini_chat.config import Machine, Recipe, Source
from mini_chat.data import clean, inputs
from mini_chat.data.steps import run_step
from mini_chat.data.zh_simplify import make_transform
from mini_chat.errors import UserError
from mini_chat.files import read_json
from mini_chat.pipeline import run_stages

pytest.importorskip("datatrove", reason="datatrove is not installed; pip install 'mini-chat[cluster]'")

STEPS = ["extract", "simplify", "clean", "tokenizer", "shards"]


def sentences(of: Callable[[int], str], first: int, between: str = "") -> str:
    """Nine sentences of the corpus."""
    return between.join(of(number) for number in range(first, first + 9))


def page(number: int) -> str:
    """A page of a Wikipedia, in Traditional characters here and there."""
    text = f"'''第{number}頁'''{{{{模板}}}}乾燥的頭髮。{sentences(chinese, 5 * number)}"
    return f"<page><title>第{number}頁</title><ns>0</ns><revision><text>{text}</text></revision></page>\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `en` of five files, with copies and near copies across files, and a folder of two dumps."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "en").mkdir()
    for file in range(5):
        stories = [sentences(english, 9 * number, " ") for number in range(8 * file, 8 * file + 12)]
        stories += [story.replace("garden", "yard", 1) for story in stories[3:5]]
        write_jsonl(folder / "en" / f"{file}.jsonl", [*({"text": text} for text in stories), {"no": "text"}])
    (folder / "en" / "notes.md").write_text("passed over")
    (folder / "wiki").mkdir()
    for part in range(2):
        pages = "".join(page(number) for number in range(25 * part, 25 * part + 25))
        (folder / "wiki" / f"zhwiki-{part}.xml").write_text(f"<mediawiki xml:lang='zh'>{pages}</mediawiki>")
    return folder


@pytest.fixture
def corpus_recipe(texts: Path, tokenizer_directory: Path) -> Callable[..., Recipe]:
    """The recipe of all corpus steps, into `run` beside which the test stands; `machine` as given."""

    def make(**machine: Any) -> Recipe:
        sources = [
            {"path": str(texts / "en"), "language": "en", "weight": 1.5},
            {"path": str(texts / "wiki"), "language": "zh", "format": "wiki"},
        ]
        return Recipe.model_validate(
            {
                "out": "run",
                "stages": STEPS,
                "machine": {"processes": 2} | machine,
                "data": {"documents": sources},
                "extract": {"min_characters": 10},
                "clean": {"repetition": False},
                "tokenizer": {"path": str(tokenizer_directory)},
                "shards": {
                    "shard_bytes": 4096,
                    "memory_bytes": 1_000_000,
                    "validation_share": 0.1,
                    "near_duplicates": 0.5,
                },
            }
        )

    return make


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source is several stretches and parts; who is to work on which is decided here, not in the tasks."""
    monkeypatch.setattr(inputs, "STRETCH_BYTES", 600)
    monkeypatch.setattr(clean, "SURVIVOR_BYTES", 4_000)
    monkeypatch.setattr("mini_chat.data.cleaning.survivors.PORTIONS", 2)


@pytest.fixture(scope="module")
def by_one_process(texts: Path) -> dict[str, Any]:
    """Filled by the first test that needs it."""
    return {}


def everything(run: Path) -> dict[str, bytes]:
    """All files of the corpus steps but the times that they took."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in {"stages.json", ".lock"}]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture
def expected(
    by_one_process: dict[str, Any],
    corpus_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, bytes]:
    """What our own processes write."""
    if not by_one_process:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("native"))
            run_stages(corpus_recipe(processes=1), STEPS)
            by_one_process |= everything(Path("run"))
    return by_one_process


def test_the_corpus_is_cut_into_several_stretches_parts_and_shards(expected: dict[str, bytes]) -> None:
    parts = [name for name in expected if name.endswith(".jsonl.zst")]
    for step in ("extract", "simplify"):
        assert len([name for name in parts if name.startswith(f"{step}/wiki-")]) >= 2
    assert len([name for name in parts if name.startswith("clean/en-")]) >= 2
    assert len([name for name in expected if name.startswith("shards/train-") and name.endswith(".ds")]) >= 3
    manifest = json.loads(expected["shards/manifest.json"])
    assert {"valid-en", "valid-zh"} <= manifest["splits"].keys()
    assert manifest["mixing"]["sources"][0]["mix"]["en"]["epochs"] > 1, "there are repetitions"
    accounts = [json.loads(data)["accounting"] for name, data in expected.items() if name.endswith("manifest.json")]
    dropped = {reason for account in accounts for reason, count in account["dropped"].items() if count}
    assert {"field missing", "duplicate", "near duplicate", "near-duplicate of a held-out document"} <= dropped


def test_the_local_executor_writes_the_bytes_of_one_process(
    expected: dict[str, bytes], corpus_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_stages(corpus_recipe(engine="local", tasks=2, workers=2), STEPS)
    assert everything(Path("run")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 3, 16])
def test_the_number_of_tasks_changes_no_byte(
    tasks: int,
    expected: dict[str, bytes],
    corpus_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_stages(corpus_recipe(engine="local", tasks=tasks, workers=2), STEPS)
    assert everything(Path("run")) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_cluster_writes_the_bytes_of_one_process(
    expected: dict[str, bytes], corpus_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'mini-chat[cluster]'")
    monkeypatch.chdir(tmp_path)
    try:
        run_stages(corpus_recipe(engine="ray", ray_address="local", tasks=3, task_memory_bytes=500_000_000), STEPS)
    finally:
        ray.shutdown()
    assert everything(Path("run")) == expected


@pytest.mark.slow
def test_without_a_ray_cluster_the_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'mini-chat[cluster]'")
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "一只猫。"}])
    with pytest.raises(UserError, match=r"machine\.ray_address auto: no Ray cluster there"):
        step(tmp_path / "a.jsonl", engine="ray")


@pytest.mark.slow
def test_slurm_writes_the_bytes_of_one_process(
    expected: dict[str, bytes],
    corpus_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", slurm.install(tmp_path / "slurm")["PATH"])
    monkeypatch.chdir(tmp_path)
    run_stages(corpus_recipe(engine="slurm", tasks=3), STEPS)
    assert everything(Path("run")) == expected


# What the tests below run in a process of its own: simplify, on a folder of files, each a stretch.
SIMPLIFY = """
import sys
from pathlib import Path
from functools import partial
from mini_chat.config import Machine, Source
from mini_chat.data import steps, zh_simplify

def run(folder, machine):
    steps.run_step("simplify", [Source(path=folder, language="zh")], Path("run"), {},
                   partial(zh_simplify.make_transform, "t2s", False), machine, 10_000_000,
                   part_bytes=20_000, stretch_bytes=1)

if __name__ == "__main__":
    run(sys.argv[1], Machine(engine=sys.argv[2], processes=2, tasks=4))
"""


@pytest.fixture
def simplify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts the step in a directory, by an engine."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for file in range(4):
        texts = [f"第{file}段{number}：頭髮發現乾燥，後來國語說。" * 9 for number in range(400)]
        write_jsonl(folder / f"{file}.jsonl", [{"text": text} for text in texts])
    script = tmp_path / "simplify.py"
    script.write_text(SIMPLIFY)

    def start(where: str, engine: str, **environment: str) -> subprocess.Popen[bytes]:
        (tmp_path / where).mkdir(exist_ok=True)
        command = [sys.executable, str(script), str(folder), engine]
        return subprocess.Popen(
            command, cwd=tmp_path / where, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    return start


def finished(process: subprocess.Popen[bytes]) -> str:
    """What a process said, which must have ended well."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    return said.decode()


def processes_in(directory: Path) -> list[int]:
    """Processes whose working directory it is."""
    found = []
    for process in psutil.process_iter(["pid", "cwd"]):
        if process.info["cwd"] == str(directory):
            found.append(process.info["pid"])
    return found


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_change_no_byte_and_leave_no_process(
    kills: int, simplify: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    finished(simplify("undisturbed", "none"))
    stretches = tmp_path / "killed/run"
    for kill in range(kills):
        process = simplify("killed", "local")
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(stretches.glob("*/stretches/0*/part-*.json"))) <= kill:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while processes_in(tmp_path / "killed"):
            assert time.monotonic() < deadline, "workers outlive the process that started them"
            time.sleep(0.01)
    finished(simplify("killed", "local"))
    assert everything(tmp_path / "killed/run") == everything(tmp_path / "undisturbed/run")


def test_slurm_gets_an_array_of_tasks_and_is_waited_for(
    simplify: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    finished(simplify("native", "none"))
    path = slurm.install(tmp_path / "slurm")
    said = finished(simplify("slurm-run", "slurm", **path))
    assert everything(tmp_path / "slurm-run/run") == everything(tmp_path / "native/run")
    assert "Slurm job 100: 4 tasks" in said
    (job,) = (tmp_path / "slurm/state").glob("job-*.json")
    options = read_json(job)["options"]
    wanted = {"array": "0-3", "cpus-per-task": "1", "mem-per-cpu": "2G", "partition": "cpu", "time": "24:00:00"}
    assert options.items() >= (wanted | {"job-name": "mini-chat-simplify"}).items()
    assert not {"qos", "mail-user"} & options.keys()


@pytest.mark.slow
def test_slurm_jobs_under_way_are_not_submitted_again(
    simplify: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    finished(simplify("native", "none"))
    path = slurm.install(tmp_path / "slurm") | {"SLURM_DELAY": "6"}
    process = simplify("run", "slurm", **path)
    while not list((tmp_path / "run/run").glob("*/stretches/tasks-4/jobs.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    finished(simplify("run", "slurm", **path))
    assert everything(tmp_path / "run/run") == everything(tmp_path / "native/run")
    assert len(list((tmp_path / "slurm/state").glob("job-*.json"))) == 1


@pytest.mark.slow
def test_tasks_that_slurm_loses_are_told_and_run_by_the_next_start(
    simplify: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    path = slurm.install(tmp_path / "slurm")
    broken = {"PATH": f"{tmp_path / 'broken'}:{path['PATH']}"}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/scontrol").write_text("#!/bin/sh\nexit 1\n")  # every task dies of it
    (tmp_path / "broken/scontrol").chmod(0o755)
    process = simplify("run", "slurm", **broken)
    _, said = process.communicate(timeout=120)
    assert process.returncode and "simplify: 4 of 4 tasks were lost" in said.decode()
    finished(simplify("run", "slurm", **path))


def step(folder: Path, **machine: Any) -> None:
    """The step simplify on a folder, into `run`."""
    made = partial(make_transform, "t2s", False)
    run_step("simplify", [Source(path=str(folder))], Path("run"), {}, made, Machine(**machine), 1000, stretch_bytes=1)


def test_a_mistake_in_the_input_is_the_same_line_on_every_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"text": "一只猫。"}])
    (folder / "b.txt").write_bytes("兩隻狗。".encode("utf-16"))
    lines = []
    machines: list[dict[str, Any]] = [{"processes": 1}, {"engine": "local", "workers": 2}]
    for machine in machines:
        with pytest.raises(UserError) as caught:
            step(folder, **machine)
        lines.append(str(caught.value))
        shutil.rmtree("run")
    assert lines[0] == lines[1] and "UTF-16" in lines[0] and "\n" not in lines[0]
    (folder / "b.txt").unlink()
    write_jsonl(folder / "a.jsonl", [{"no": "text"}])
    for machine in machines:
        with pytest.raises(UserError, match=r"nothing usable in it \(field missing: 1\)"):
            step(folder, **machine)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"engine": "slurm"}, "there is no sbatch here; run this on a login node"),
        ({"engine": "slurm", "partition": "none"}, "sbatch refused the job"),
        ({"engine": "ray"}, "ray is not installed; run: pip install 'mini-chat[cluster]'"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(
    machine: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "partition" in machine:
        monkeypatch.setenv("PATH", slurm.install(tmp_path / "slurm")["PATH"])
    monkeypatch.setitem(sys.modules, "ray", None)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "一只猫。"}])
    with pytest.raises(UserError) as caught:
        step(tmp_path / "a.jsonl", **machine)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_without_datatrove_an_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("mini_chat.data.engines")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "一只猫。"}])
    with pytest.raises(UserError, match=r"datatrove is not installed; run: pip install 'mini-chat\[cluster\]'"):
        step(tmp_path / "a.jsonl", engine="local")


def test_the_command_line_has_a_short_name_for_the_engine() -> None:
    assert Arguments(["--engine", "ray", "--machine.tasks=4"]).overrides() == {
        "machine.engine": "ray",
        "machine.tasks": "4",
    }
