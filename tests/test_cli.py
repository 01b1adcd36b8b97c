"""The command line: help at once, one line an error, the exit status that says what to do next."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mini_chat import __version__, cli, pipeline
from mini_chat.cli import COMMANDS, main
from mini_chat.config import Recipe
from mini_chat.errors import UserError
from mini_chat.trainer.loop import Interrupted

ROOT = Path(__file__).parent.parent
SCRIPT = Path(sys.executable).parent / "mini-chat"


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert called(str(SCRIPT), "--help").stdout.startswith(f"mini-chat {__version__}: ")
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.5


def test_main_py_is_mini_chat() -> None:
    for words in (["--help"], ["sft", "--help"], ["nope"]):
        ours, theirs = called(sys.executable, "main.py", *words), called(str(SCRIPT), *words)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
        assert ours.stdout or ours.stderr


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from mini_chat.cli import main; main(['pretrain', '--help']); print(*sys.modules)"
    modules = called(sys.executable, "-c", program).stdout.splitlines()[-1].split()
    assert not {"torch", "transformers", "numpy"} & set(modules)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on standard error; nothing may be on standard output."""
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err.splitlines()


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_stage_has_help_with_meaning_and_default(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mini-chat {stage} ")
    assert COMMANDS[stage].does in text
    if stage in {"pretrain", "sft", "dpo"}:
        assert f"  --{stage}.lr_max\n" in text and "(default " in text and "[tokens]" in text


def test_the_overview_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    for stage, entry in COMMANDS.items():
        assert re.search(rf"^  {stage} +{re.escape(entry.does)}$", without, re.MULTILINE)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mini-chat {__version__}\n"


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["pretran"], 2, "mini-chat: error: pretran: no such stage; did you mean pretrain?"),
        (["run", "dmeo"], 1, "mini-chat run: error: dmeo: no such recipe; did you mean demo?"),
        (
            ["run", "none.yaml"],
            1,
            "mini-chat run: error: none.yaml: cannot read (No such file or directory); recipes are in config/",
        ),
        (["run", "demo", "extra"], 2, "mini-chat run: error: extra: not expected here; see mini-chat run --help"),
        (["run", "demo", "-x"], 2, "mini-chat run: error: -x: not expected here; see mini-chat run --help"),
        (["run", "demo", "--seed"], 2, "mini-chat run: error: --seed needs a value; see mini-chat run --help"),
        (
            ["sft", "demo", "--sft.lr_max", "--seed", "2"],
            2,
            "mini-chat sft: error: --sft.lr_max needs a value; see mini-chat sft --help",
        ),
        (["chat", "--seed", "x"], 2, "mini-chat chat: error: --seed x: not a number; see mini-chat chat --help"),
        (["chat", "-p"], 2, "mini-chat chat: error: -p needs a value; see mini-chat chat --help"),
        (
            ["run", "demo", "--pretrain.lr_mx", "1"],
            1,
            "mini-chat run: error: {config}: pretrain.lr_mx: unknown key; did you mean lr_max?",
        ),
        (
            ["run", "demo", "--name.x=1"],
            1,
            "mini-chat run: error: --name.x: name is a value, not a section",
        ),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(words) == status
    assert lines(capsys) == [line.replace("{config}", "config/demo.yaml")]


def test_every_problem_of_a_recipe_is_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sed: 1\npretrain: {steps: x}\n")
    assert main(["run", str(path)]) == 1
    assert lines(capsys) == [
        f"mini-chat run: error: {path}: pretrain.steps: input should be a valid integer, "
        "unable to parse string as an integer, not 'x'",
        f"mini-chat run: error: {path}: sed: unknown key; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["run", "{recipe}"], ["sft", "dpo"]),
        (["pretrain", "{recipe}"], ["pretrain"]),
        (["--seed", "5", "{recipe}"], ["pretrain"]),
        (["--seed=5", "{recipe}"], ["pretrain"]),
        (["{recipe}", "--seed", "5", "--quiet"], ["pretrain"]),
    ],
)
def test_words_become_a_recipe_and_stages(
    words: list[str], stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nstages: [sft, dpo]\n")
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "run_stages", lambda recipe, stages: seen.append((recipe, stages)))
    filled = [word.replace("{recipe}", str(path)) for word in words]
    if filled[0] not in COMMANDS:
        filled = ["pretrain", *filled]
    assert main(filled) == 0
    ((recipe, asked),) = seen
    assert asked == stages
    assert recipe.seed == (5 if "5" in " ".join(words) else 1)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("one\ntwo"), 1, "mini-chat sft: error: one|mini-chat sft: error: two"),
        (Interrupted("sft: stopped at step 3"), 75, "mini-chat sft: stopped at step 3"),
        (KeyboardInterrupt(), 130, "mini-chat sft: interrupted; the same command goes on from the last checkpoint"),
        (
            OSError(28, "No space left on device", "out/x"),
            1,
            "mini-chat sft: error: out/x: No space left on device; check the path and the disk",
        ),
        (MemoryError(), 1, "mini-chat sft: error: out of memory; lower micro_tokens or the model's size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
            1,
            "mini-chat sft: error: out of memory; lower micro_tokens or the model's size",
        ),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_an_error_is_its_line_and_its_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "sft", cli.Command("x", "sft", fail))
    assert main(["sft"]) == status
    assert lines(capsys) == [part for part in line.split("|") if part]


def test_a_model_that_does_not_fit_the_memory_is_one_line(
    finished_run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    for part in ("tokenizer", "shards"):
        shutil.copytree(finished_run.directory / part, tmp_path / "run" / part)
    recipe = finished_run.model_dump() | {"out": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["pretrain", str(tmp_path / "recipe.yaml"), "--quiet", "--model.intermediate_size", str(10**12)]
    assert main(words) == 1
    assert lines(capsys) == ["mini-chat pretrain: error: out of memory; lower micro_tokens or the model's size"]


def test_quiet_says_nothing(finished_run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(finished_run.model_dump()))
    assert main(["sft", str(tmp_path / "recipe.yaml"), "--quiet"]) == 0
    assert lines(capsys) == []
    assert main(["sft", str(tmp_path / "recipe.yaml")]) == 0
    assert lines(capsys)[0] == f"sft: {finished_run.directory / 'sft'} is finished"


def test_help_may_be_left_before_its_end() -> None:
    repository = Path(__file__).parents[1]
    command = f"{sys.executable} main.py --help | true; {sys.executable} main.py run --help | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=repository, timeout=60)
    assert result.stderr == "" and result.stdout.startswith("usage: mini-chat run")
