"""What a stage says while it works: plain lines, and a progress bar with rate and time left.

On a terminal the bar is drawn by rich; elsewhere (a pipe, a log file) a line is printed now and then. Everything goes
to standard error, so that standard output carries results only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 20.0  # between lines where no bar can be drawn

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence everything but errors."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Print a line for the user."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A running count with a note beside it."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit, self.done, self.note = title, total, unit, 0.0, ""
        self.started = self.printed = time.monotonic()
        self.begun_at = 0.0
        self._rich: Any = None
        self._task: Any = None

    def start_at(self, done: float) -> None:
        """Begin at `done`: what an earlier run did counts as done but not towards the rate."""
        self.begun_at = self.done = done
        self._show()

    def expect(self, total: float) -> None:
        """So much there is in all, as far as is known now."""
        self.total = total
        if self._rich is not None:
            self._rich.update(self._task, total=total)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more; `note` is shown beside the bar."""
        self.done += amount
        self.note = note or self.note
        self._show()

    def reach(self, done: float, note: str = "") -> None:
        """So much is done in all; `note` is shown beside the bar."""
        self.done = done
        self.note = note or self.note
        self._show()

    def _show(self) -> None:
        if self._rich is not None:
            self._rich.update(self._task, completed=self.done, note=self.note)
        elif not _quiet and time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            of = f"/{self.total:,.0f}" if self.total else ""
            say(f"  {self.title} {self.done:,.0f}{of} {self.unit}  {self.note}  {self.left()}".rstrip())

    def left(self) -> str:
        """Time left, in words."""
        made = self.done - self.begun_at
        if not self.total or made <= 0:
            return ""
        return f"{duration((time.monotonic() - self.started) * (self.total - self.done) / made)} left"


@contextmanager
def progress(title: str, total: float | None, unit: str) -> Iterator[Bar]:
    """Show a bar while the block runs."""
    bar = Bar(title, total, unit)
    if _quiet or not sys.stderr.isatty():
        yield bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        bar._rich, bar._task = display, display.add_task(title, total=total, note="")
        yield bar


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def abandon_output() -> None:
    """Give up standard output, whose reader has left: nothing is left to flush, and to complain of, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
