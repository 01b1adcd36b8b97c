"""Work spread over processes, its results in order: the same results whatever the number of processes.

Workers are started anew (not forked), so they hold only what the work itself imports, and they leave when the process
that started them is gone, however it went.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mini_chat.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING_PER_PROCESS = 2  # items that a process finds waiting when it has finished one; bounds memory


def in_batches(items: Iterable[Item], size: Callable[[Item], int], full: int) -> Iterator[list[Item]]:
    """The items in lists, each closed by the item that brings its size to `full` or over."""
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= full:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    make_work: Callable[[], Callable[[Item], Result]], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """`work(item)` of every item, in the items' order, on so many processes (0: one per core; 1: in this one).

    Args:
        make_work: makes the function, once in each process; picklable (a top-level function or class, or a
            `functools.partial` of one), so that what the work needs is loaded there and not sent along.
        items: read as results are taken, never far ahead: memory is a few items per process.

    Raises:
        UserError: a process was killed from outside, as happens when memory runs out.
    """
    processes = processes or available_cores()
    if processes == 1:
        work = make_work()
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(make_work,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_do, item))
            if len(waiting) >= WAITING_PER_PROCESS * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {processes} worker processes was killed, as happens when memory runs out; lower "
            "machine.processes or the stage's memory_bytes, and run the same command again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any]


def _start_worker(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    """Ready a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _work = make_work()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
