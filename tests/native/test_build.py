"""Compiling once, for the processor at hand, into a cache; every way to fail is one line."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernels import needs_compiler

from mini_chat import native
from mini_chat.errors import UserError
from mini_chat.native import build

ADDS = 'extern "C" long add(long a, long b) { return a + b; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "adds.cpp").write_text(ADDS, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.built()
    assert ctypes.CDLL(str(first)).add(2, 3) == 5
    made = first.stat().st_mtime_ns
    assert build.built() == first and first.stat().st_mtime_ns == made
    assert {path.name for path in first.parent.iterdir()} == {first.name, "lock"}
    (sources / "adds.cpp").write_text(ADDS.replace("a + b", "a + b + 1"), encoding="utf-8")
    second = build.built()
    assert second != first and ctypes.CDLL(str(second)).add(2, 3) == 6


@needs_compiler
def test_another_processor_gets_code_of_its_own(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.built()
    monkeypatch.setattr(build, "_processor", lambda: "another")
    assert build.built() != first


@needs_compiler
def test_what_was_compiled_stays_without_the_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.built()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.built() == first


@needs_compiler
def test_what_a_power_cut_damaged_is_compiled_anew(sources: Path) -> None:
    build.built().write_bytes(b"\x7fELF")
    assert native.loaded().add(2, 3) == 5


@needs_compiler
def test_processes_that_start_together_compile_once(sources: Path) -> None:
    body = f"build.SOURCES = pathlib.Path({str(sources)!r}); print(build.built())"
    words = [sys.executable, "-c", f"import pathlib; from mini_chat.native import build; {body}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(words, **pipes) for _ in range(3)]
    outputs, said = zip(*[process.communicate() for process in started], strict=True)
    assert len(set(outputs)) == 1 and outputs[0].strip().endswith(".so")
    assert sum("compiling" in text for text in said) == 1


@needs_compiler
def test_what_does_not_compile_is_one_line_and_leaves_nothing(sources: Path) -> None:
    (sources / "adds.cpp").write_text("int x = ;\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot compile them \(.*error") as raised:
        build.built()
    assert "\n" not in str(raised.value)
    assert [path.name for path in build.cache_directory().iterdir()] == ["lock"]


def test_no_compiler_and_a_broken_one_are_one_line(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="there is no C\\+\\+ compiler"):
        build.built()
    for given, said in (("/nowhere/c++", "/nowhere/c\\+\\+ does not run"), ('g++ "', "CXX is no command")):
        monkeypatch.setenv("CXX", given)
        with pytest.raises(UserError, match=said):
            build.built()


def test_a_home_that_cannot_be_written_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    assert build.cache_directory() == tmp_path / "not" / "there" / "mini-chat"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert tmp_path not in build.cache_directory().parents


def test_code_that_another_user_may_have_left_is_not_loaded(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = build.own_directory(build.cache_directory())
    directory.chmod(0o777)
    with pytest.raises(UserError, match="only you can write"):
        build.built()
    directory.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(UserError, match="only you can write"):
        build.built()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
@pytest.mark.parametrize("source", ["attention.cpp", "loss.cpp"])
@pytest.mark.parametrize("processor", ["sapphirerapids", "cooperlake", "skylake-avx512", "haswell"])
def test_kernels_compile_for_processors_that_are_not_here(processor: str, source: str) -> None:
    words = [
        build._compiler()[0],
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fopenmp",
        f"-march={processor}",
        str(build.SOURCES / source),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert not done.returncode, done.stderr[:2000]
