"""datatrove's executors, as the recipe's machine wants them, each seen to its end.

A task that is finished has a mark in `completions/`, datatrove's; what is killed runs again when the same command does.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datatrove.utils.logging as datatrove_logging
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

from mini_chat.config import Machine
from mini_chat.console import Bar, progress, say
from mini_chat.data.engines import INSTALL
from mini_chat.data.engines.blocks import FAILURES, Block, failures, logs_of
from mini_chat.errors import UserError
from mini_chat.files import write_json
from mini_chat.parallel import available_cores, ordered_map

OPEN_TASKS = 16
"""Tasks where the engine says nothing of how many run at once."""
POLL_SECONDS = 2.0
SLURM_ARRAY = 1001
"""Slurm's own MaxArraySize; more tasks go in several arrays."""

# datatrove logs to the terminal as well as to files; what the user is to see there, `console` says.
datatrove_logging.sys = SimpleNamespace(stderr=open(os.devnull, "w"))  # noqa: SIM115
datatrove_logging.setup_default_logger()


def tasks_of(machine: Machine, most: int) -> int:
    """How many tasks to deal `most` pieces of work to."""
    return max(1, min(machine.tasks or workers_of(machine) or OPEN_TASKS, most))


def workers_of(machine: Machine) -> int:
    """Tasks at once; 0: as many as the engine has room for."""
    local = machine.processes or available_cores()
    return machine.workers or (local if machine.engine == "local" else 0)


def run_block(block: Block, tasks: int, machine: Machine) -> None:
    """Run a block's tasks on the machine's engine, until all are done.

    Raises:
        UserError: a task's own, or tasks that were lost, or an engine that is not there.
    """
    if machine.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError(f"machine.engine ray: ray is not installed; run: {INSTALL}")
    logs = logs_of(block.directory, tasks).resolve()
    shutil.rmtree(logs / FAILURES, ignore_errors=True)
    with progress(block.name, tasks, "tasks") as bar:
        executor = _EXECUTORS[machine.engine](block, tasks, machine, logs, bar)
        executor.run()
    lost = len(executor.get_incomplete_ranks())
    if lost:
        said = failures(logs)
        raise UserError(
            said[0]
            if said
            else f"{block.name}: {lost} of {tasks} tasks were lost, as happens when memory or time runs out; see "
            f"{logs / 'logs'}, and run the same command again"
        )


# ---------------------------------------------------------------------------------------------------------------------
# This machine


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, on processes of ours: they leave with the one that started them, and one that is killed is told."""

    def __init__(self, block: Block, tasks: int, machine: Machine, logs: Path, bar: Bar) -> None:
        workers = min(workers_of(machine), tasks)
        super().__init__([block], tasks=tasks, workers=workers, logging_dir=str(logs))
        self._bar: Bar | None = bar

    def run(self) -> None:
        """Run the tasks that are not done."""
        bar, self._bar = self._bar, None  # it does not go to the workers
        assert bar is not None
        ranks = self.get_incomplete_ranks()
        bar.start_at(self.tasks - len(ranks))
        for _ in ordered_map(partial(_TaskOf, self), ranks, min(self.workers, len(ranks)) or 1):
            bar.advance()


class _TaskOf:
    """In a worker: a rank → its task done."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.executor = executor

    def __call__(self, rank: int) -> None:
        copy.deepcopy(self.executor)._run_for_rank(rank)


# ---------------------------------------------------------------------------------------------------------------------
# Ray


class RayExecutor(RayPipelineExecutor):
    """datatrove's, on a cluster that is there or, with the address `local`, on one that is started for this process."""

    def __init__(self, block: Block, tasks: int, machine: Machine, logs: Path, bar: Bar) -> None:
        super().__init__(
            [block],
            tasks=tasks,
            workers=machine.workers or -1,
            logging_dir=str(logs),
            mem_per_cpu_gb=machine.task_memory_bytes / 2**30,
        )
        self._machine = machine
        self._bar: Bar | None = bar

    def run(self) -> None:
        """Run the tasks that are not done."""
        bar, self._bar = self._bar, None  # it does not go to the cluster
        assert bar is not None
        _connect_ray(self._machine)
        with _watched(bar, lambda: self.tasks - len(self.get_incomplete_ranks())):
            super().run()


def _connect_ray(machine: Machine) -> None:
    """Be part of a Ray cluster, until this process ends: a start takes longer than many a step.

    Raises:
        UserError: there is none.
    """
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if machine.ray_address == "local":
        cores = machine.workers or machine.processes or available_cores()
        options |= {"num_cpus": cores, "include_dashboard": False, "_memory": cores * machine.task_memory_bytes + 2**28}
    try:
        ray.init(address=machine.ray_address, **options)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"machine.ray_address {machine.ray_address}: no Ray cluster there ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or give `local`"
        ) from error


@contextlib.contextmanager
def _watched(bar: Bar, done: Callable[[], int]) -> Iterator[None]:
    """Move the bar while the block runs."""
    over = threading.Event()

    def watch() -> None:
        bar.start_at(done())
        while not over.wait(POLL_SECONDS):
            bar.reach(done())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# Slurm


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's, whose jobs are waited for; a start that finds them under way does not submit them again."""

    def __init__(self, block: Block, tasks: int, machine: Machine, logs: Path, bar: Bar) -> None:
        self.job_ids: list[str] = []
        super().__init__(
            [block],
            tasks=tasks,
            time=_clock(machine.time_limit_hours),
            partition=machine.partition,
            mem_per_cpu_gb=math.ceil(machine.task_memory_bytes / 1e9),
            workers=machine.workers or -1,
            job_name=f"mini-chat-{block.name.replace(' ', '-').replace(':', '')}",
            qos="",
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',  # of the environment that submits
            max_array_size=SLURM_ARRAY,
            max_array_launch_parallel=True,
            logging_dir=str(logs),
            with_srun=False,  # one process a task
        )
        self._jobs = logs / "jobs.json"
        self._bar: Bar | None = bar

    @property
    def job_id(self) -> str | None:
        """The last job that was submitted."""
        return self.job_ids[-1] if self.job_ids else None

    @job_id.setter
    def job_id(self, value: str | None) -> None:
        if value is not None and value != -1:
            self.job_ids.append(value)

    def launch_merge_stats(self) -> None:
        """A job more for statistics that our accounts hold already: none."""

    def launch_job(self) -> None:
        """Wait for tasks that are under way, then submit those that are not done, and wait for their end."""
        bar, self._bar = self._bar, None  # it does not go to the cluster
        assert bar is not None
        if self._jobs.is_file():
            self.job_ids = json.loads(self._jobs.read_text(encoding="utf-8"))
        if self._under_way():
            self._wait(bar)
        if not self.get_incomplete_ranks():
            return
        self.job_ids = []
        try:
            super().launch_job()
        except FileNotFoundError as error:
            raise UserError("machine.engine slurm: there is no sbatch here; run this on a login node") from error
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"sbatch refused the job ({error}); see above, and machine.partition, time_limit_hours and "
                "task_memory_bytes"
            ) from error
        write_json(self._jobs, self.job_ids)
        self._wait(bar)

    def _wait(self, bar: Bar) -> None:
        """Until all tasks are done, or Slurm knows of none any more."""
        say(f"  Slurm job {', '.join(self.job_ids)}: {self.tasks} tasks")
        lost = len(self.get_incomplete_ranks())
        bar.start_at(self.tasks - lost)
        while lost and not failures(self._jobs.parent):
            ended = not self._under_way()  # asked first: what ends in between is seen as done
            lost = len(self.get_incomplete_ranks())
            bar.reach(self.tasks - lost)
            if ended:
                return
            time.sleep(POLL_SECONDS)

    def _under_way(self) -> bool:
        """Whether Slurm still has one of the jobs."""
        if not self.job_ids:
            return False
        command = ["squeue", "--noheader", "--jobs", ",".join(self.job_ids), "--format", "%i"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return bool(answer.stdout.strip())


def _clock(hours: float) -> str:
    """Hours as Slurm takes them."""
    minutes = math.ceil(hours * 60)
    return f"{minutes // 60}:{minutes % 60:02d}:00"


_EXECUTORS: dict[str, Callable[[Block, int, Machine, Path, Bar], Any]] = {
    "local": LocalExecutor,
    "ray": RayExecutor,
    "slurm": SlurmExecutor,
}
