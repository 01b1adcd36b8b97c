"""What every block of ours has: where it runs, how its work is dealt, and how it fails."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from mini_chat.data.tally import Tally
from mini_chat.errors import UserError
from mini_chat.files import atomic_open, exclusive

FAILURES = "failures"


def logs_of(directory: Path, tasks: int) -> Path:
    """Where datatrove notes what becomes of so many tasks: another number deals the work anew."""
    return directory / f"tasks-{tasks}"


class Block(PipelineStep):
    """A block that reads and writes files of its own: it takes no documents and gives none.

    Args:
        directory: where it leaves what it makes.
    """

    type = "Mini-Chat"

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name  # datatrove's constructor asks for it
        super().__init__()
        self.directory = directory
        self.started_in = Path.cwd()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Do the share of task `rank` of `world_size`; a mistake of the user's is left for whoever waits, too."""
        os.chdir(self.started_in)  # paths in a recipe are relative to it, and tasks start elsewhere
        logs = logs_of(self.directory, world_size)
        try:
            # A task that lives on where its starter is gone must not write what its successor writes.
            with exclusive(logs / "at-work" / f"{rank:05d}"), self.track_time("task"):
                self.work(rank, world_size)
        except UserError as error:
            with atomic_open(logs / FAILURES / f"{rank:05d}", "w") as file:
                file.write(str(error))
            raise

    @abstractmethod
    def work(self, rank: int, world_size: int) -> None:
        """Do the share of task `rank` of `world_size`."""

    def count(self, tally: Tally) -> None:
        """Show an account among datatrove's statistics."""
        for name, value in (("read", tally.read), ("written", tally.written), *tally.dropped.items()):
            if value:
                self.stat_update(name, value=value)


def failures(logs: Path) -> list[str]:
    """What went wrong in tasks, by rank."""
    return [path.read_text(encoding="utf-8") for path in sorted((logs / FAILURES).glob("[0-9]*[0-9]"))]
