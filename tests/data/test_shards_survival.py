"""Shards survive kills, a full disk and a second process: what is finally written is an undisturbed run's."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import chinese, english, write_jsonl

from mini_chat.files import exclusive

DOCUMENTS = 12_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of some megabytes: enough for several runs and shards at the least memory."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    paths = []
    for name, make in (("en", english), ("zh", chinese)):
        between = " " if name == "en" else ""
        words = [word for number in range(120) for word in (make(number).split() if between else make(number))]
        texts = [between.join(draw.choices(words, k=draw.randrange(20, 120))) for _ in range(DOCUMENTS // 2)]
        paths.append(write_jsonl(folder / f"{name}.jsonl", [{"text": one} for one in texts]))
    return paths


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(text: list[Path], tokenizer_directory: Path) -> Start:
    """Starts the command that stands alone, in a process of its own; `file_bytes` bounds what it may write."""

    def run(
        out: Path, processes: int = 1, file_bytes: int | None = None, shard_bytes: int = 100_000
    ) -> subprocess.Popen[str]:
        options = {"tokenizer": tokenizer_directory, "output": out, "processes": processes, "memory": 1_000_000}
        options |= {"shard-bytes": shard_bytes, "validation-share": 0.02}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "mini_chat.data.prepare_shards", *map(str, text), *arguments]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))) if file_bytes else None
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=limit)

    return run


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a process; what it said."""
    said = process.communicate(timeout=120)[1]
    assert process.returncode == status and "Traceback" not in said, said
    return said


def bits(directory: Path) -> dict[str, bytes]:
    """Everything but the request and the lock; nothing else may be left."""
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in {"step.json", ".lock"}}


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(start(out))
    found = bits(out)
    assert sum(name.endswith(".ds") and name.startswith("train") for name in found) > 5
    assert all(name.startswith(("train-", "valid-")) or name == "manifest.json" for name in found)
    return found


def killed_at_random(start: Start, out: Path, kills: int, processes: int, whole: float, draw: random.Random) -> int:
    """Kill so many times at random instants, going on each time; how often it was begun anew because it had ended."""
    ended = died = 0
    while died < kills:
        process = start(out, processes)
        time.sleep(draw.uniform(0.2, 1.0) * whole)
        process.kill()
        process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            died += 1
        else:
            ended += 1
            (out / "manifest.json").unlink()  # it ended first: the shards are there, let it write them again
            whole *= 0.8
    return ended


def test_kills_change_no_byte(start: Start, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    finish(start(out))
    whole = time.monotonic() - began
    (out / "step.json").write_text("{}")  # made again from nothing
    killed_at_random(start, out, 4, 1, whole, random.Random(1))
    finish(start(out))
    assert bits(out) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_of_two_processes_change_no_byte(
    start: Start, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    finish(start(out, 2))
    whole = time.monotonic() - began
    (out / "step.json").write_text("{}")
    killed_at_random(start, out, 20, 2, whole, random.Random(2))
    finish(start(out, 2))
    assert bits(out) == undisturbed


def test_a_disk_full_of_runs_is_one_line_and_when_space_is_freed_it_goes_on(
    start: Start, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert_full(finish(start(out, file_bytes=150_000), status=1), out)
    finish(start(out))
    assert bits(out) == undisturbed


def test_a_disk_full_of_shards_is_one_line_and_when_space_is_freed_it_goes_on(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_full(finish(start(out, file_bytes=1_100_000, shard_bytes=1_200_000), status=1), out)
    assert (out / "scratch" / "runs" / "encoded.json").is_file()
    finish(start(out, shard_bytes=1_200_000))
    finish(start(tmp_path / "undisturbed", shard_bytes=1_200_000))
    assert bits(out) == bits(tmp_path / "undisturbed")


def assert_full(said: str, out: Path) -> None:
    line = said.splitlines()[-1]
    assert line.startswith("prepare_shards: error: ") and "cannot write (File too large); free space or" in line
    assert not list(out.rglob("*.partial")) and not (out / "manifest.json").exists()


def test_a_second_process_on_one_directory_refuses(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with exclusive(out):
        line = finish(start(out), status=1).splitlines()[-1]
    assert line == (
        f"prepare_shards: error: {out}: another mini-chat process is working here; "
        "wait for it or choose another directory"
    )
