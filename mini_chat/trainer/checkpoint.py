"""Checkpoints of a training run: whole, verified, and enough to go on as if nothing had happened.

`state/step-00000400/` holds `model.safetensors` (float32 master weights), `optimizer.safetensors` and `state.json`
with the step, the run's identity, the checksums of the others and its own. Of a model in shards (FSDP2) each process
writes `shard-….safetensors` instead, by torch.distributed.checkpoint; any number of processes reads either. A
checkpoint appears by one rename.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mini_chat.console import say
from mini_chat.distributed import from_first, is_first, wait_for_all
from mini_chat.errors import UserError
from mini_chat.files import atomic_directory, read_json, sha256_file, sha256_json, write_json
from mini_chat.trainer.identity import refuse_other_run
from mini_chat.trainer.optimizer import Optimizers
from mini_chat.trainer.parallelism import is_sharded

FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass
class Checkpoints:
    """The checkpoints of one stage.

    Args:
        identity: what the final bits depend on (configuration, data, seed, machine); a checkpoint of another identity
            is refused with the difference named.
        keep: how many checkpoints stay, besides the one that training would go back to.
        background: write while training goes on, from a copy of the weights and the optimiser's state in memory.
    """

    directory: Path
    identity: dict[str, Any]
    keep: int = 2
    background: bool = False
    damaged: set[Path] = field(default_factory=set)
    writer: BackgroundWriter = field(default_factory=lambda: BackgroundWriter())

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / f"step-{step:08d}"

    def paths(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.directory.glob("step-????????") if (path / "state.json").is_file())

    def save(
        self, step: int, model: nn.Module, optimizers: Optimizers, progress: dict[str, Any], good: int | None = None
    ) -> None:
        """Write a checkpoint, then remove the oldest beyond `keep`; all processes call it.

        Args:
            good: the step that training would go back to; its checkpoint stays.

        Raises:
            UserError: this checkpoint, or the one before in the background, could not be written.
        """
        self.finish()
        weights = {name: p.detach() for name, p in model.named_parameters()}
        state = {"step": step, "progress": progress, "identity": self.identity}
        if any(map(is_sharded, weights.values())):
            self._write_shards(step, weights | optimizers.state_tensors(), state, good)
        elif is_first():
            tensors = (weights, optimizers.state_tensors())
            if self.background:
                copies = [{name: tensor.to("cpu", copy=True) for name, tensor in part.items()} for part in tensors]
                self.writer.start(lambda: self._write(step, copies, state, good))
            else:
                self._write(step, tensors, state, good)

    def finish(self) -> None:
        """Wait until what is being written is written.

        Raises:
            UserError: it could not be.
        """
        self.writer.finish()

    def _write(self, step: int, tensors: Any, state: dict[str, Any], good: int | None) -> None:
        with atomic_directory(self.path(step)) as partial:
            for name, part in zip(FILES, tensors, strict=True):
                save_tensors(part, partial / name)
            write_state(partial, state)
        self.damaged.discard(self.path(step))
        self._remove_old(good)

    def _write_shards(
        self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], good: int | None
    ) -> None:
        """Every process writes its part of each tensor; the first one names the whole when all have."""
        import torch.distributed.checkpoint as dcp

        path = self.path(step)
        partial = path.with_name(path.name + ".partial")

        def write_part() -> None:
            with plain_errors():
                dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True))

        if not is_first():
            wait_for_all()
            try:
                write_part()
            except OSError as error:
                raise UserError(f"{path}: cannot write ({error})") from error
            wait_for_all()
            return
        with atomic_directory(path) as made:
            assert made == partial
            wait_for_all()
            write_part()
            write_state(made, state)
        self.damaged.discard(path)
        self._remove_old(good)
        wait_for_all()

    def _remove_old(self, good: int | None) -> None:
        """Remove the oldest whole checkpoints beyond `keep`, and damaged ones: a newer one is whole."""
        whole = [path for path in self.paths() if path not in self.damaged]
        for path in [*whole[: -self.keep], *self.damaged]:
            if good is None or path != self.path(good):
                remove(path)
        self.damaged.clear()

    def load(
        self, model: nn.Module, optimizers: Optimizers, device: torch.device, last: int | None = None
    ) -> dict[str, Any] | None:
        """Restore the newest checkpoint whose bytes are intact; returns its state, or None where there is none.

        All processes call it; the first one looks and says what it finds.

        Args:
            last: the step that the checkpoint may be of at most; newer ones are removed, their training is given up.

        Raises:
            UserError: the checkpoint belongs to a run with other settings or data.
        """
        self.finish()
        state = from_first(self._newest(last) if is_first() else None)
        if state is None:
            return None
        path = self.path(state["step"])
        refuse_other_run(path, state["identity"], self.identity)
        if FILES[0] in state["sha256"] and not any(map(is_sharded, model.parameters())):
            weights = load_file(path / FILES[0], device=str(device))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name])
            optimizers.load_state_tensors(load_file(path / FILES[1], device=str(device)))
        else:
            load_shards(path, model, optimizers)
        wait_for_all()  # before any of them goes on to remove or replace it
        return state

    def _newest(self, last: int | None) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is intact; what is damaged is said, and remembered."""
        self.sweep()
        given_up = []
        for path in sorted(self.directory.glob("step-????????"), reverse=True):
            if last is not None and path > self.path(last):
                given_up.append(path)
                continue
            state, broken = read_state(path)
            if not broken:
                for newer in given_up:
                    remove(newer)
                return state
            say(f"{path}: {broken} is damaged; going back to the checkpoint before it")
            self.damaged.add(path)
        return None

    def sweep(self) -> None:
        """Remove what a killed process left of checkpoints that it was writing or removing."""
        for ending in ("partial", "replaced", "removed"):
            for path in self.directory.glob(f"step-*.{ending}"):
                shutil.rmtree(path, ignore_errors=True)


class BackgroundWriter:
    """One piece of writing at a time, in a thread."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin; what was begun before is finished."""

        def work() -> None:
            try:
                write()
            except BaseException as error:  # handed over in `finish`
                self.error = error

        self.thread = threading.Thread(target=work)  # no daemon: the process does not end amid a checkpoint
        self.thread.start()

    def finish(self) -> None:
        """Wait for the end, and raise what went wrong."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def remove(path: Path) -> None:
    """Remove a checkpoint; first its name, so that a kill leaves nothing that looks whole, or damaged."""
    leaving = path.with_name(path.name + ".removed")
    path.rename(leaving)
    shutil.rmtree(leaving)


def write_state(partial: Path, state: dict[str, Any]) -> None:
    """Write `state.json` over the checkpoint's other files, with their checksums and its own."""
    state = state | {"sha256": {file.name: sha256_file(file) for file in sorted(partial.iterdir())}}
    write_json(partial / "state.json", state | {"own_sha256": sha256_json(state)})


def load_shards(path: Path, model: nn.Module, optimizers: Optimizers) -> None:
    """Fill the model and the optimiser's state, whole or this process's part, from files of either kind."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path))
    saved = reader.read_metadata().state_dict_metadata
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shapes = {key: entry.size for key, entry in saved.items() if key not in state}  # type: ignore[union-attr]
    of_optimizers = optimizers.empty_state(shapes)
    with plain_errors():
        dcp.load(state | of_optimizers, storage_reader=reader, no_dist=True)
    optimizers.load_state_tensors(of_optimizers)


@contextmanager
def plain_errors() -> Iterator[None]:
    """torch's account of what some of the processes could not do, which is no `Exception`, as an OSError in all."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        process, (first, _) = next(iter(error.failures.items()))
        what = str(first).strip().splitlines() or [type(first).__name__]
        raise OSError(f"process {process}: {what[0]}") from error


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how the library reports that writing failed
        raise OSError(str(error)) from error


def read_state(path: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint's state.json, and the name of its first file whose bytes are not those that were written, or ""."""
    try:
        state = read_json(path / "state.json")
        own = state.pop("own_sha256")
        if own != sha256_json(state):
            return {}, "state.json"
        checksums = state["sha256"].items()
    except (UserError, KeyError, TypeError, AttributeError):
        return {}, "state.json"
    for name, checksum in checksums:
        if not (path / name).is_file() or sha256_file(path / name) != checksum:
            return {}, name
    return state, ""
