"""The search for duplicates on an engine: a key of all documents is a task's, and what it finds goes to a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mini_chat.config import Machine
from mini_chat.data.cleaning.duplicates import Found, Task, find
from mini_chat.data.engines.blocks import Block
from mini_chat.data.engines.executors import run_block, tasks_of
from mini_chat.errors import UserError
from mini_chat.files import atomic_open


class SearchBlock(Block):
    """Keys → the documents that came before."""

    def __init__(self, todo: list[Task], directory: Path) -> None:
        super().__init__("clean: duplicates", directory)
        self.todo = todo

    def work(self, rank: int, world_size: int) -> None:
        """Search every `world_size`-th key."""
        for number in range(rank, len(self.todo), world_size):
            if (path := self.result(number)).is_file():
                continue
            found = find(self.todo[number])
            with atomic_open(path) as file:
                np.savez(file, bits=found.bits, pairs=found.pairs)

    def result(self, number: int) -> Path:
        """What was found of a key."""
        return self.directory / f"{number:02d}.npz"


def search_by_engine(todo: list[Task], directory: Path, machine: Machine) -> Iterator[Found]:
    """What `duplicates.find` finds for each of these, by the machine's engine.

    Raises:
        UserError: a task's own, or what a task left is not there.
    """
    block = SearchBlock(todo, directory)
    run_block(block, tasks_of(machine, len(todo)), machine)
    for number in range(len(todo)):
        path = block.result(number)
        try:
            with np.load(path, allow_pickle=False) as found:
                yield Found(found["bits"], found["pairs"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not what its task left; remove {directory} and run again") from error
