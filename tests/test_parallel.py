"""Work on several processes gives what one process gives, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest

from mini_chat.errors import UserError
from mini_chat.parallel import ordered_map


def make_square(offset: int) -> Callable[[int], tuple[int, int]]:
    def square(number: int) -> tuple[int, int]:
        time.sleep(0.01 * (number % 3))  # later items may be ready earlier
        return number * number + offset, os.getpid()

    return square


def make_killer() -> Callable[[int], int]:
    def die(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    return die


def make_slow() -> Callable[[int], int]:
    def sleep(number: int) -> int:
        time.sleep(60)
        return number

    return sleep


def make_mistaken() -> Callable[[int], int]:
    def mistake(number: int) -> int:
        raise UserError(f"item {number}: is wrong; mend it")

    return mistake


def test_results_come_in_order_and_are_those_of_one_process() -> None:
    several = list(ordered_map(partial(make_square, 7), range(20), 2))
    one = list(ordered_map(partial(make_square, 7), range(20), 1))
    assert [value for value, _ in several] == [value for value, _ in one]
    assert len({process for _, process in several}) == 2 and os.getpid() not in {process for _, process in several}


def test_items_are_not_read_far_ahead_of_the_results() -> None:
    read = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = ordered_map(partial(make_square, 0), items(), 2)
    next(results)
    assert len(read) <= 4
    results.close()  # type: ignore[attr-defined]


def test_a_killed_worker_is_one_line_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"^one of 2 worker processes was killed.*lower machine.processes"):
        list(ordered_map(make_killer, range(3), 2))


def test_a_users_mistake_in_a_worker_arrives_as_such() -> None:
    with pytest.raises(UserError, match=r"^item 0: is wrong; mend it$"):
        list(ordered_map(make_mistaken, range(3), 2))


def test_workers_leave_when_their_parent_is_killed() -> None:
    program = (
        "from test_parallel import make_slow\nfrom mini_chat.parallel import ordered_map\n"
        "if __name__ == '__main__':\n    list(ordered_map(make_slow, range(4), 2))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    while len(children) < 3 and time.monotonic() < deadline:  # two workers and multiprocessing's resource tracker
        time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
    time.sleep(1)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 2 and not alive
