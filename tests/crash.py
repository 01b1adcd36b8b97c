"""Runs the command line in processes that are killed: at an instant, or at an operation on a file.

The processes are forked from one that has imported everything and computed nothing, so each starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# Whatever changes what is found under a name; a kill between any two of them must leave nothing half done.
OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "truncate")


def preload() -> None:
    """Have the server of forks import what the stages need, once."""
    CONTEXT.set_forkserver_preload(["crash", "mini_chat.pipeline", "mini_chat.trainer.dpo", "torch.utils.tensorboard"])


def run(arguments: list[str], output: str, die_at: int | None) -> None:
    """In the new process: run `mini-chat ARGUMENTS`; with `die_at`, be killed before that many file operations."""
    from mini_chat.cli import main
    from mini_chat.device import Device

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    Device.matmul_flops = 1e11  # type: ignore[assignment] # measuring it takes two seconds
    if die_at is not None:
        die_before_operation(die_at)
    raise SystemExit(main(arguments))


def die_before_operation(number: int) -> None:
    """Let this process kill itself instead of changing a name for the `number`-th time."""
    count = 0

    def counting(original: Any) -> Any:
        def operation(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counting(getattr(os, name)))


@contextlib.contextmanager
def started(arguments: list[str], output: Path, die_at: int | None = None) -> Iterator[ForkServerProcess]:
    """A process that runs the command; whatever is left of it at the end is killed."""
    process = CONTEXT.Process(target=run, args=(arguments, str(output), die_at))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def finish(arguments: list[str], output: Path, die_at: int | None = None) -> int:
    """Run the command to its end, or to its death; the exit status, negative for a signal's number."""
    with started(arguments, output, die_at) as process:
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode


def kill_after(arguments: list[str], output: Path, seconds: float, number: int = signal.SIGKILL) -> int:
    """Send a signal so long after the start, and wait for the end."""
    with started(arguments, output) as process:
        process.join(seconds)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode


def timed(arguments: list[str], output: Path) -> float:
    """Run the command to a good end; seconds."""
    began = time.monotonic()
    assert finish(arguments, output) == 0, output.read_text()
    return time.monotonic() - began
