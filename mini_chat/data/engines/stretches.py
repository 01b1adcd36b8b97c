"""An input worked through by an engine: a task has every n-th stretch, and leaves its parts beside the others'."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mini_chat.config import Machine
from mini_chat.data.engines.blocks import Block
from mini_chat.data.engines.executors import run_block, tasks_of
from mini_chat.data.parts import STRETCH, STRETCHES, Output, Parts, work_through
from mini_chat.data.steps import Input
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError
from mini_chat.files import atomic_open

LIST = "list.jsonl"


class StretchBlock(Block):
    """Stretches of an input → parts, each stretch in a directory of its own.

    Args:
        directory: of these directories; the stretches stand in its `list.jsonl`.
        identity: see `parts.Parts`, as `part_bytes`; `kind` is the class to use.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        kind: type[Parts],
        identity: dict[str, Any],
        part_bytes: int,
        work_input: Input[Any],
        make_work: Callable[[], Callable[[Any], Output]],
    ) -> None:
        super().__init__(name, directory)
        self.kind, self.identity, self.part_bytes = kind, identity, part_bytes
        self.input, self.make_work = work_input, make_work

    def work(self, rank: int, world_size: int) -> None:
        """Work through every `world_size`-th stretch."""
        made: list[Callable[[Any], Output]] = []  # once, when it is needed

        def work() -> Callable[[Any], Output]:
            made.extend([] if made else [self.make_work()])
            return made[0]

        for number, stretch in dealt(self.directory, rank, world_size):
            directory = self.directory / f"{number:05d}"
            if (directory / STRETCH).is_file():
                continue
            parts, tally = self.kind(directory, self.identity | {"stretch": stretch}, self.part_bytes), Tally()
            items = itertools.chain(self.input.items(stretch, tally), [None])
            work_through(parts, items, work, 1)
            parts.leave(tally)
            self.count(tally)


def deal(directory: Path, found: list[Any]) -> None:
    """Write down what is to be dealt."""
    with atomic_open(directory / LIST, "w") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in found)


def dealt(directory: Path, rank: int, world_size: int) -> Iterator[tuple[int, Any]]:
    """A task's share, with numbers; of the others' only line ends are looked at."""
    with open(directory / LIST, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number % world_size == rank:
                yield number, json.loads(line)


def fill_by_engine(
    name: str,
    parts: Parts,
    work_input: Input[Any],
    found: list[list[Any]],
    make_work: Callable[[], Callable[[Any], Output]],
    machine: Machine,
    tally: Tally,
) -> None:
    """Work through the stretches of an input by the machine's engine into `parts`; see `steps.fill`.

    Args:
        found: the stretches.
        tally: takes the readers' accounts.

    Raises:
        UserError: a task's own, or what a task left is not there.
    """
    directory = parts.directory / STRETCHES
    deal(directory, found)
    block = StretchBlock(name, directory, type(parts), parts.identity, parts.part_bytes, work_input, make_work)
    run_block(block, tasks_of(machine, len(found)), machine)
    places = [directory / f"{number:05d}" for number in range(len(found))]
    for place in places:
        if not (place / STRETCH).is_file():
            raise UserError(f"{place}: not what its task left; remove {directory} and run the same command again")
    tally.merge(parts.join(places))
