"""Files appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import crash
import pytest
from tiny import recorded

from mini_chat import files
from mini_chat.errors import UserError
from mini_chat.files import atomic_directory, atomic_open, exclusive, read_json, sha256_file, sha256_json, write_json

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a descriptor is of")


def name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_a_file_is_there_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_open(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UserError("x")])
def test_an_error_while_writing_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_open(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow over 1000 bytes while the block runs, and no longer: pytest's own output may be a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(UserError) as caught, small_disk(), atomic_open(path) as file:
        file.write(b"x" * 5000)
    assert str(caught.value) == f"{path}: cannot write (File too large); free space or choose another directory"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "file").write_bytes(b"old")
    with (
        pytest.raises(UserError, match=r"cannot write \(File too large\); free space"),
        small_disk(),
        atomic_directory(tmp_path / "d") as partial,
    ):
        (partial / "file").write_bytes(b"x" * 5000)
    assert (tmp_path / "d/file").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_an_error_while_flushing_is_an_error_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        write_json(tmp_path / "file", {})
    assert not list(tmp_path.iterdir())


@on_linux
def test_a_file_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(files.os, "fsync", recorded(done, name_of, os.fsync))
    monkeypatch.setattr(Path, "replace", recorded(done, lambda *_: "replace", Path.replace))
    write_json(tmp_path / "file", {})
    assert done == [str(tmp_path / "file.partial"), "replace", str(tmp_path)]


@on_linux
def test_a_directory_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(files.os, "fsync", recorded(done, name_of, os.fsync))
    monkeypatch.setattr(Path, "rename", recorded(done, lambda *_: "rename", Path.rename))
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "sub").mkdir()
        (partial / "sub/file").write_text("x")
    base = tmp_path / "d.partial"
    assert done == [str(base / "sub"), str(base / "sub/file"), str(base), "rename", str(tmp_path)]


def write_directory(path: Path, content: str) -> None:
    """Two files that belong together."""
    with atomic_directory(path) as partial:
        for name in ("a", "b"):
            (partial / name).write_text(content)


def in_a_process(work: Callable[[], None], die_at: int) -> bool:
    """Do the work in a fork that is killed before its `die_at`-th operation on a file; whether it came to its end."""
    pid = os.fork()
    if not pid:
        try:
            crash.die_before_operation(die_at)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFEXITED(status)


def test_a_kill_at_any_operation_leaves_the_old_directory_or_the_new_one(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "d", set()
    for number in range(1, 60):
        for entry in tmp_path.iterdir():
            files.shutil.rmtree(entry)
        write_directory(path, "old")
        ended = in_a_process(lambda: write_directory(path, "new"), number)
        with contextlib.suppress(ValueError), atomic_directory(path):
            raise ValueError  # the next process finds what there is, and writes nothing itself
        content = {file.read_text() for file in path.iterdir()}
        assert sorted(file.name for file in path.iterdir()) == ["a", "b"]
        assert content in ({"old"}, {"new"})
        outcomes.add((ended, *content))
        write_directory(path, "newer")
        assert [entry.name for entry in tmp_path.iterdir()] == ["d"], "leftovers are swept away"
        if ended:
            break
    assert {(False, "old"), (False, "new"), (True, "new")} == outcomes


def test_a_kill_at_any_operation_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, deaths = tmp_path / "file", 0
    for number in range(1, 20):
        write_json(path, "old")
        if in_a_process(lambda: write_json(path, "new"), number):
            break
        deaths += 1
        assert read_json(path) in {"old", "new"}
    assert deaths and read_json(path) == "new"


def test_json_that_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*/none.json: cannot read \(No such file or directory\); check the path$"):
        read_json(tmp_path / "none.json")
    for content in (b"{", b"\xff\xfe", b""):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.json: not valid JSON .*; it was damaged") as caught:
            read_json(tmp_path / "bad.json")
        assert "\n" not in str(caught.value)


def test_the_fingerprint_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_the_checksum_of_a_file_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_directory_is_held_by_one_process_and_freed_with_it(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="another mini-chat process is working here"),
        exclusive(tmp_path),
    ):
        pass
    with exclusive(tmp_path):
        pass
    pid = os.fork()
    if not pid:
        exclusive(tmp_path).__enter__()
        os._exit(0)  # dies holding it
    os.waitpid(pid, 0)
    with exclusive(tmp_path):
        pass
