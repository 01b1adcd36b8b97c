"""Checkpoints: which of them stay, and which is taken when some are damaged or cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Make, pretrain, run_killed, weights
from tiny import tiny_model

from mini_chat.config import Pretrain
from mini_chat.errors import UserError
from mini_chat.trainer import checkpoint
from mini_chat.trainer.checkpoint import Checkpoints, read_state
from mini_chat.trainer.identity import refuse_other_run, same_run
from mini_chat.trainer.optimizer import Optimizers

CPU = torch.device("cpu")


class Saved:
    """A model with a little state, and its checkpoints."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.model = tiny_model()
        self.optimizers = Optimizers(self.model, Pretrain())
        self.train(0)
        self.checkpoints = Checkpoints(directory, {"seed": 1}, **changes)

    def train(self, seed: int) -> None:
        tokens = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(seed))
        self.model(tokens, labels=tokens).loss.backward()
        self.optimizers.step()
        self.optimizers.zero_grad()

    def save(self, *steps: int, good: int | None = None) -> None:
        for step in steps:
            self.checkpoints.save(step, self.model, self.optimizers, {"step": step}, good)

    def load(self, last: int | None = None) -> int | None:
        state = self.checkpoints.load(self.model, self.optimizers, CPU, last)
        return state["step"] if state else None

    @property
    def names(self) -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in sorted(self.checkpoints.directory.iterdir())]


def damage(directory: Path, step: int, name: str = "optimizer.safetensors") -> None:
    path = directory / f"step-{step:08d}" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def test_the_newest_stay_and_the_good_one_however_old(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.save(1, 2, 3, 4, good=1)
    assert saved.names == [1, 3, 4]
    saved.save(5, good=4)
    assert saved.names == [4, 5]


def test_a_damaged_newest_never_costs_the_last_good_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Saved(tmp_path, keep=1).save(2)
    Saved(tmp_path, keep=2).save(6)
    damage(tmp_path, 6)
    again = Saved(tmp_path, keep=1)
    assert again.load() == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/step-00000006: optimizer.safetensors is damaged; going back to the checkpoint before it\n"
    )
    assert again.names == [2, 6], "the damaged one goes when a newer one is whole"
    again.save(3)
    assert again.names == [3]


def test_the_checkpoint_that_replaces_a_damaged_one_of_its_step_stays(tmp_path: Path) -> None:
    Saved(tmp_path).save(2, 4)
    damage(tmp_path, 4)
    again = Saved(tmp_path)
    assert again.load() == 2
    again.save(4)
    assert again.names == [2, 4] and read_state(again.checkpoints.path(4))[1] == ""


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_said_and_the_one_before_is_taken(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = Saved(tmp_path)
    saved.save(2, 4)
    (tmp_path / "step-00000004" / name).unlink()
    assert saved.load() == 2
    assert f"step-00000004: {name} is damaged; going back to the checkpoint before it" in capsys.readouterr().err


def test_going_back_removes_what_came_after(tmp_path: Path) -> None:
    saved = Saved(tmp_path, keep=9)
    saved.save(1, 2, 3, 4)
    assert saved.load(last=2) == 2 and saved.names == [1, 2]


def test_a_disk_that_is_full_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Saved(tmp_path)
    saved.save(1, 2)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"^.*step-00000003: cannot write \(No space left on device\); free space"):
        saved.save(3)
    assert saved.names == [1, 2]


def test_a_directory_that_cannot_be_written_is_one_line(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared()
    mkdir = Path.mkdir

    def read_only(self: Path, *arguments: Any, **keywords: Any) -> None:
        if "state" in self.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError) as caught:
        pretrain(recipe)
    path = recipe.directory / "pretrain/state/step-00000002"
    assert str(caught.value) == (
        f"{path}: cannot write (Read-only file system); free space or choose another directory"
    )


def test_a_background_checkpoint_is_of_the_moment_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, later = Saved(tmp_path / "now"), Saved(tmp_path / "later", background=True)
    gate, original = threading.Event(), checkpoint.save_file

    def slow(*arguments: Any) -> None:
        gate.wait(30)
        original(*arguments)

    now.save(1)
    monkeypatch.setattr(checkpoint, "save_file", slow)
    later.save(1)
    assert not (tmp_path / "later/step-00000001").exists(), "not written yet"
    later.train(7)
    gate.set()
    later.checkpoints.finish()
    for name in checkpoint.FILES:
        ours, theirs = (tmp_path / where / "step-00000001" / name for where in ("now", "later"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Saved(tmp_path, background=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        saved.save(1)
        with pytest.raises(UserError, match="free space"):
            saved.save(2)
    saved.save(3)
    saved.checkpoints.finish()
    assert saved.names == [3]


def test_a_run_that_saves_in_the_background_ends_in_the_same_bits(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, behind = prepared("one"), prepared("two")
    pretrain(undisturbed)
    original = Checkpoints.__init__

    def background(self: Checkpoints, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self.background = True

    monkeypatch.setattr(Checkpoints, "__init__", background)
    run_killed(behind, 5)
    pretrain(behind)
    assert weights(behind) == weights(undisturbed)


def test_shards_with_other_bytes_are_refused_and_named(prepared: Make, tmp_path: Path) -> None:
    recipe = prepared()
    run_killed(recipe, 3)
    manifest = recipe.directory / "shards/manifest.json"
    shutil.copy2(manifest, tmp_path / "manifest.json")
    manifest.write_text(manifest.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UserError, match=r"this checkpoint is of another run \(shards was [0-9a-f]+, now 0[0-9a-f]+\)"):
        pretrain(recipe)


def test_another_number_of_processes_is_told_and_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    alone = {"seed": 1, "threads": 2}
    two = {"seed": 1, "threads": 1, "processes": 2, "parallel": "auto"}
    path = Path("run/state/step-00000004")
    for saved, now in ((alone, two), (two, alone), (two, two | {"processes": 4})):
        refuse_other_run(path, saved, now)
        assert same_run(saved, now)
        assert capsys.readouterr().err == (
            f"{path}: written by {saved.get('processes', 1)} processes, going on with {now.get('processes', 1)}: the "
            "tokens of each batch stay, rounding does not\n"
        )
    for saved, now in ((alone, alone | {"threads": 1}), (two, two | {"threads": 2}), (alone, two | {"seed": 2})):
        assert not same_run(saved, now)
        with pytest.raises(UserError):
            refuse_other_run(path, saved, now)
