"""Several processes that train one model: who is who, and the few numbers that they tell each other.

torchrun starts them and says in the environment which is which; without it there is one process, and nothing here does
anything. torch is loaded only where there are several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from mini_chat.errors import UserError

Item = TypeVar("Item")
Tensor = TypeVar("Tensor")

_alone = False
_met = False


class LostProcessError(UserError):
    """Another process is gone; which one, and why, it or torchrun says itself."""


TIMEOUT = timedelta(hours=2)
"""Longest wait for each other. torchrun notices a process that died at once; this is for the first one's long work."""


def _told(name: str, alone: int) -> int:
    """What torchrun says in the environment, or `alone` where it did not start us."""
    return int(os.environ.get(name, alone)) if "TORCHELASTIC_RUN_ID" in os.environ else alone


def processes() -> int:
    """Processes that train together, on all machines."""
    return 1 if _alone else _told("WORLD_SIZE", 1)


def rank() -> int:
    """This process's number among them, from 0."""
    return _told("RANK", 0)


def local_processes() -> int:
    """Those on this machine."""
    return _told("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among those of its machine: its GPU."""
    return _told("LOCAL_RANK", 0)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def voice(error: UserError) -> str | None:
    """What stands before this process's account of an error; None where another process gives it.

    Before they have met all processes see the same error, in the recipe or the environment.
    """
    if local_rank() == 0:
        return ""
    return f"process {rank()}: " if _met and not isinstance(error, LostProcessError) else None


@contextmanager
def alone() -> Iterator[None]:
    """What the block does is this process's own, not shared with the others, which wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def joined(device_type: str) -> Iterator[None]:
    """Meet the other processes, and part from them at the end. Numbers on the CPU go by gloo, tensors on GPUs by NCCL.

    Raises:
        UserError: another process is gone.
    """
    global _met
    if processes() == 1:
        yield
        return
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        _met = True
        yield
        wait_for_all()
    except Exception as error:
        if not is_lost_connection(error):
            raise
        what = str(error).strip().splitlines()[0][:160]
        raise LostProcessError(
            f"process {rank()} of {processes()}: another process is gone ({what}); the same command goes on from the "
            "last checkpoint, and with torchrun --max-restarts 3 it does so by itself"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_lost_connection(error: Exception) -> bool:
    """Whether an exception is how the communication library says that a process is gone."""
    lost = ("connection", "timed out", "timeout", "socket", "broken pipe", "remote process", "remote peer")
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in told for word in lost)


def wait_for_all() -> None:
    """Return when every process has come here."""
    summed([0.0])


def summed(values: Sequence[float]) -> list[float]:
    """The sum of each value over all processes; in each of them the same bits."""
    if processes() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def summed_tensor(tensor: Tensor) -> Tensor:
    """A tensor of the CPU, the sum over all processes."""
    if processes() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """The first process's value, any that JSON can hold; it is sent as JSON."""
    if processes() == 1:
        return value
    import torch
    import torch.distributed as dist

    data = bytearray(json.dumps(value).encode())
    size = torch.tensor([len(data)])
    dist.broadcast(size, 0)
    buffer = torch.frombuffer(data, dtype=torch.uint8) if is_first() else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(buffer, 0)
    return json.loads(bytes(buffer.tolist()))


@contextmanager
def first_one_first() -> Iterator[None]:
    """The first process goes through the block while the others wait; they find done what it did."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def rows_problem(name: str, rows: int) -> str:
    """What is wrong with sharing out a step's rows among the processes, in a line, or ""."""
    if rows % processes() == 0:
        return ""
    near = processes() * max(1, round(rows / processes()))
    return (
        f"{name}: a batch of {rows} rows cannot be shared out among {processes()} processes; "
        f"set {name}.batch_tokens to {near} times row_tokens, or start another number of processes"
    )


def my_part(count: int) -> range:
    """This process's part of so many things, which the number of processes divides: a run of neighbours."""
    each, rest = divmod(count, processes())
    assert not rest, (count, processes())
    return range(rank() * each, (rank() + 1) * each)


def shared_out(items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
    """This process's items, and whether each counts: all processes get as many, so that they can work in step.

    Where the items do not come out even the last ones are given out again, not to be counted.
    """
    turns = -(-len(items) // processes())
    for turn in range(turns):
        place = turn * processes() + rank()
        yield items[min(place, len(items) - 1)], place < len(items)
