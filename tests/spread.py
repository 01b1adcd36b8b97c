"""Runs the command line in several processes that train together, as torchrun would start them, but in milliseconds."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import crash


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _enter(variables: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    work(*arguments)


def processes(size: int, work: Callable[..., Any], *arguments: Any) -> list[ForkServerProcess]:
    """Start `work(*arguments)` in so many processes that know of each other; both picklable."""
    port = free_port()
    started = []
    for rank in range(size):
        process = crash.CONTEXT.Process(target=_enter, args=(environment(rank, size, port), work, arguments))
        process.start()
        started.append(process)
    return started


def statuses(started: list[ForkServerProcess], seconds: float = 120) -> list[int | None]:
    """Wait for all; their exit statuses, negative for a signal's number. What hangs is killed."""
    for process in started:
        process.join(seconds)
    hanging = [process for process in started if process.exitcode is None]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, "it hangs"
    return [process.exitcode for process in started]


def finish(size: int, arguments: list[str], output: Path) -> list[int | None]:
    """Run `mini-chat ARGUMENTS` on so many processes to the end; their exit statuses."""
    return statuses(processes(size, crash.run, arguments, str(output), None))


def run_until_saved(arguments: list[str], output: str, last: int | None) -> None:
    """In a process: run the command; be killed when the checkpoint of step `last` is written."""
    from mini_chat.trainer.checkpoint import Checkpoints

    save = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, *others: Any) -> None:
        save(self, step, *others)
        if step == last:
            time.sleep(0.5)  # the others come so far too
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save_and_die  # type: ignore[method-assign, assignment]
    crash.run(arguments, output, None)


def run_with_full_disk(arguments: list[str], output: str, step: int) -> None:
    """In a process: run the command; from the checkpoint of a step on the second one may write small files only."""
    from mini_chat.trainer.checkpoint import Checkpoints

    save = Checkpoints.save

    def save_with_little_room(self: Checkpoints, at: int, *others: Any) -> None:
        if at == step and os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        save(self, at, *others)

    Checkpoints.save = save_with_little_room  # type: ignore[method-assign, assignment]
    crash.run(arguments, output, None)


def run_second_with(arguments: list[str], options: list[str], output: str) -> None:
    """In a process: run the command, in all but the first with more options."""
    crash.run([*arguments, *(options if os.environ["RANK"] != "0" else [])], output, None)
