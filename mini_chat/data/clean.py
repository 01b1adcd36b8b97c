"""Documents → documents: mended, filtered, and without those that came before.

1. Every source is read once, its documents mended and judged on as many processes as there are (`cleaning.cleaner`).
   What survives goes to temporary parts, with 16 bytes of a hash and 8 bytes a band of a MinHash signature for each.
   (If lines repeated across documents are to go, a pass before that counts them.)
2. The keys of all sources are searched for documents that came before (`cleaning.duplicates`): in this source, in one
   before it in the recipe, or in an earlier run that the recipe names.
3. The survivors are copied without them to the final parts, and the temporary ones are removed.

Memory is a matter of `clean.memory_bytes`, not of the corpus. A kill costs the part in work; the bytes are those of an
undisturbed run. The keys stay beside the parts: if a source changes, it and those after it are cleaned again, since
whether their documents came before depends on it; those before it are not.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_chat.config import Clean, Machine, Recipe, Source
from mini_chat.console import duration, progress, say
from mini_chat.data.cleaning.cleaner import RULES
from mini_chat.data.cleaning.duplicates import Columns, Found, Task, find, frequent, tasks, write_columns
from mini_chat.data.cleaning.samples import dropped, show_samples, write_samples
from mini_chat.data.cleaning.survivors import (
    DUPLICATE,
    LINE_KEYS,
    NEAR_DUPLICATE,
    FirstPass,
    LinePass,
    Portions,
    SecondPass,
    SurvivorParts,
    key_columns,
)
from mini_chat.data.inputs import about, input_size, nothing_usable
from mini_chat.data.parts import MANIFEST, REQUEST, Parts
from mini_chat.data.steps import PART_BYTES, DocumentBatches, fill, folders
from mini_chat.data.tally import Tally, reasons
from mini_chat.errors import UserError
from mini_chat.files import atomic_directory, atomic_open, read_json, sha256_file, sha256_json, write_json
from mini_chat.parallel import available_cores, ordered_map

SURVIVOR_BYTES = 16_000_000
"""Size of a temporary part; the second pass holds one at a time."""
PROCESS_BYTES = 150_000_000
"""What a process takes that cleans documents of ordinary size: 80 MB are Python and its libraries, the rest data."""
MAIN_BYTES = 200_000_000
"""What the process takes that reads and writes."""
MIN_TASK_BYTES = 8_000_000
FEW_DOCUMENTS, FEW_BYTES = 500_000, 2_000_000
"""Starting a process takes about as long as searching so many documents, or cleaning so much."""

WORK, KEYS, SAMPLES, INDEX = "work", "keys", "samples.jsonl", "index.json"


class Job(NamedTuple):
    """A source being cleaned."""

    source: Source
    folder: str
    final: Parts
    identity: dict[str, Any]
    """What the first pass depends on."""


def clean(sources: list[Source], directory: Path, recipe: Recipe) -> None:
    """Clean the documents of `sources` into `directory`, a folder of parts for each.

    Raises:
        UserError: sources that cannot be read, a full disk, a killed worker, an earlier run that is not there, a source
            of which nothing is left.
    """
    started = time.monotonic()
    settings = recipe.clean
    processes, task_bytes = _resources(recipe)
    seen, earlier = _earlier_runs(settings)
    jobs = _jobs(sources, directory, recipe, earlier)
    open_jobs = [job for job in jobs if job.final.manifest is None or not _has_keys(directory, job, settings)]
    for job in jobs:
        if job in open_jobs:
            (job.final.directory / MANIFEST).unlink(missing_ok=True)
        else:
            shutil.rmtree(directory / WORK / job.folder, ignore_errors=True)
            say(f"  clean {job.folder}: finished")

    survivors = {job.folder: _first_pass(job, directory, recipe, processes, task_bytes) for job in open_jobs}
    columns = [*seen, *(_columns(directory, job, survivors.get(job.folder), settings) for job in jobs)]
    if open_jobs:
        duplicates = _Duplicates(directory / WORK, columns, settings)
        duplicates.search(recipe.machine, processes, task_bytes, sha256_json([job.final.identity for job in jobs]))
        for number, job in enumerate(jobs, len(seen)):
            if job in open_jobs:
                _second_pass(job, survivors[job.folder], number, duplicates, recipe.machine)
                shutil.rmtree(directory / WORK / job.folder, ignore_errors=True)
    _write_index(directory, jobs, columns[len(seen) :], settings)
    shutil.rmtree(directory / WORK, ignore_errors=True)
    say(_summary(jobs, open_jobs, time.monotonic() - started))
    for job in jobs:
        account = _account(job)
        if not account.written:
            raise UserError(
                f"{job.source.path}: nothing is left of it ({reasons(account.dropped)}); look at "
                "`mini-chat clean RECIPE --show 20`, loosen the rules under clean, or leave the source out"
            )


def shown(sources: list[Source], directory: Path, most: int) -> str:
    """Up to `most` dropped and changed documents of each reason, for a terminal, from a finished run.

    Raises:
        UserError: the run is not finished.
    """
    total, files = Tally(), []
    for folder in folders(sources):
        manifest = directory / folder / MANIFEST
        if not manifest.is_file():
            raise UserError(f"{directory / folder}: not cleaned yet; run `mini-chat clean RECIPE`")
        total.merge(Tally.from_json(read_json(manifest)["accounting"]))
        files.append(directory / folder / SAMPLES)
    return show_samples(files, total, most)


# ---------------------------------------------------------------------------------------------------------------------
# What there is, and what is to be done


def _resources(recipe: Recipe) -> tuple[int, int]:
    """How many processes, and the memory of each search for duplicates [bytes]."""
    wanted = recipe.machine.processes or available_cores()
    spare = recipe.clean.memory_bytes - MAIN_BYTES
    processes = max(min(wanted, spare // PROCESS_BYTES), 1)
    if processes < wanted:
        say(f"  clean: {processes} of {wanted} processes, as many as clean.memory_bytes allows")
    return processes, max((spare - processes * PROCESS_BYTES) // processes + PROCESS_BYTES // 2, MIN_TASK_BYTES)


def _jobs(sources: list[Source], directory: Path, recipe: Recipe, earlier: list[str]) -> list[Job]:
    settings = recipe.clean.model_dump(exclude={"memory_bytes", "seen"})
    before: list[Any] = [*earlier]
    jobs = []
    for source, folder in zip(sources, folders(sources), strict=True):
        facts = about(source)
        identity = {"settings": settings, "rules": RULES, "max_line_bytes": recipe.data.max_line_bytes, **facts}
        chain = {"earlier documents": sha256_json(before)} if recipe.clean.dedup != "off" else {}
        jobs.append(Job(source, folder, Parts(directory / folder, {**identity, **chain}, PART_BYTES), identity))
        before.append(facts)
    return jobs


def _earlier_runs(settings: Clean) -> tuple[list[Columns], list[str]]:
    """The keys of the documents of earlier runs, and what tells whether they change.

    Raises:
        UserError: such a run is not there, or has other keys.
    """
    columns, fingerprints = [], []
    for run in settings.seen if settings.dedup != "off" else []:
        keys = Path(run) / "clean" / KEYS
        if not (keys / INDEX).is_file():
            raise UserError(f"clean.seen: {run}: no finished `clean` in this run; finish it or take it off the list")
        index = read_json(keys / INDEX)
        same = index["dedup"] == "near" or settings.dedup == index["dedup"]
        if not same or (settings.dedup == "near" and index["bands"] != settings.bands):
            made = f"dedup {index['dedup']}, bands {index['bands']}"
            raise UserError(f"clean.seen: {run}: it was cleaned with {made}; clean it again with this run's settings")
        columns += [Columns(keys / entry["folder"], entry["documents"]) for entry in index["columns"]]
        fingerprints.append(index["fingerprint"])
    return columns, fingerprints


def _has_keys(directory: Path, job: Job, settings: Clean) -> bool:
    return settings.dedup == "off" or _known_keys(directory, job) is not None


def _known_keys(directory: Path, job: Job) -> dict[str, Any] | None:
    """What an earlier start left for this very input, if it did."""
    keys = directory / KEYS / job.folder
    if not (keys / REQUEST).is_file() or read_json(keys / REQUEST) != {"identity": sha256_json(job.identity)}:
        return None
    return read_json(keys / INDEX)


# ---------------------------------------------------------------------------------------------------------------------
# The passes


def _first_pass(job: Job, directory: Path, recipe: Recipe, processes: int, task_bytes: int) -> SurvivorParts:
    """Mend and judge the documents of a source; what survives, with its account."""
    work = directory / WORK / job.folder
    parts = SurvivorParts(work, job.identity, SURVIVOR_BYTES)
    if parts.manifest is not None:
        return parts
    boilerplate = (
        _boilerplate(job, directory, recipe, processes, task_bytes) if recipe.clean.boilerplate_documents else None
    )
    processes = min(processes, 1 + input_size([job.source.path]) // FEW_BYTES)
    make_work = partial(FirstPass, recipe.clean, boilerplate)
    tally = _work_through("clean", job, parts, make_work, recipe, processes)
    if not tally.written:
        raise nothing_usable(job.source.path, tally)
    parts.close(tally)
    return parts


def _work_through(
    name: str, job: Job, parts: SurvivorParts, make_work: Callable[[], Any], recipe: Recipe, processes: int
) -> Tally:
    """Work through a source's documents; the reader's account."""
    machine = recipe.machine.model_copy(update={"processes": processes})
    return fill(name, parts, DocumentBatches(job.source, recipe.data.max_line_bytes), make_work, machine)


def _boilerplate(job: Job, directory: Path, recipe: Recipe, processes: int, task_bytes: int) -> Path:
    """A file of the keys of lines that too many documents of a source have."""
    work = directory / WORK / f"{job.folder}.lines"
    result = directory / WORK / f"{job.folder}.boilerplate"
    parts = SurvivorParts(work, job.identity, SURVIVOR_BYTES)
    if parts.manifest is None or not result.is_file():
        if parts.manifest is None:
            parts.close(_work_through("clean: lines", job, parts, LinePass, recipe, processes))
        files = parts.side_files(LINE_KEYS)
        total = sum(file.stat().st_size for file in files) // 8
        keys = (np.fromfile(file, np.uint64) for file in files)
        found = frequent(keys, total, recipe.clean.boilerplate_documents, task_bytes, work / "count")
        least = recipe.clean.boilerplate_documents
        say(f"  clean {job.folder}: {len(found):,} lines are in {least:,} documents or more")
        write_samples(result, [found.tobytes()])
    return result


def _columns(directory: Path, job: Job, parts: SurvivorParts | None, settings: Clean) -> Columns:
    """The keys of a source's survivors on the disk, written if they are not there."""
    keys = directory / KEYS / job.folder
    if settings.dedup == "off":
        return Columns(keys, 0)
    known = _known_keys(directory, job)
    if known is None:
        assert parts is not None, f"{keys} is missing"
        with atomic_directory(keys) as new:
            documents = write_columns(new, parts.rows(key_columns(settings)), key_columns(settings))
            known = {"documents": documents, "sha256": sha256_file(Columns(new, documents).file(0))}
            write_json(new / INDEX, known)
            write_json(new / REQUEST, {"identity": sha256_json(job.identity)})
    return Columns(keys, known["documents"])


class _Duplicates:
    """Which documents came before, by their number in all columns."""

    def __init__(self, work: Path, columns: list[Columns], settings: Clean) -> None:
        self.columns = columns
        self.starts = [0, *np.cumsum([column.documents for column in columns]).tolist()]
        self.pairs: dict[str, dict[int, int]] = {DUPLICATE: {}, NEAR_DUPLICATE: {}}
        self.settings, self.work = settings, work
        self.bits: dict[str, Path] = {}
        """Files of bits, see `survivors.Portions`."""

    def search(self, machine: Machine, processes: int, task_bytes: int, identity: str) -> None:
        """Search all keys; `identity` tells what the columns hold."""
        settings = self.settings
        if settings.dedup == "off":
            return
        bands = settings.bands if settings.dedup == "near" else 0
        todo = tasks(self.columns, bands, settings.similarity, task_bytes, self.work / "search")
        if self.starts[-1] < FEW_DOCUMENTS:
            processes = 1
        bits = {kind: np.zeros((self.starts[-1] + 7) // 8, np.uint8) for kind in (DUPLICATE, NEAR_DUPLICATE)}
        for task, found in zip(todo, self._found(todo, machine, processes, identity), strict=True):
            kind = DUPLICATE if task.band is None else NEAR_DUPLICATE
            bits[kind] |= found.bits
            for later, first in found.pairs.tolist():
                self.pairs[kind].setdefault(later, first)
        bits[NEAR_DUPLICATE] &= ~bits[DUPLICATE]
        for kind, which in bits.items():
            self.bits[kind] = self.work / f"{kind.replace(' ', '-')}.bits"
            with atomic_open(self.bits[kind]) as file:
                file.write(which.tobytes())

    def _found(self, todo: list[Task], machine: Machine, processes: int, identity: str) -> Iterator[Found]:
        if machine.engine != "none":
            from mini_chat.data.engines.search import search_by_engine

            yield from search_by_engine(todo, self.work / f"found-{identity[:16]}", machine)
            return
        with progress("clean: duplicates", len(todo), "keys") as bar:
            for found in ordered_map(_finder, todo, min(processes, len(todo))):
                yield found
                bar.advance()


def _finder() -> Any:
    return find


def _second_pass(job: Job, parts: SurvivorParts, column: int, duplicates: _Duplicates, machine: Machine) -> None:
    """Copy what did not come before to the final parts; the manifest is the last thing written."""
    start = duplicates.starts[column]
    one_process = machine.model_copy(update={"processes": 1}) if machine.engine == "none" else machine
    fill("clean: writing", job.final, Portions(parts, duplicates.bits, start), SecondPass, one_process)
    lines = [*parts.samples(), *_duplicate_samples(parts, start, duplicates)]
    write_samples(job.final.directory / SAMPLES, lines)
    assert parts.manifest is not None
    job.final.close(Tally.from_json(parts.manifest["accounting"]))


def _duplicate_samples(parts: SurvivorParts, start: int, duplicates: _Duplicates) -> Iterator[bytes]:
    """Samples of the duplicates of one source, with the earlier document where it is of the same source."""
    end = start + sum(part["documents"] for part in parts.parts)
    exact = duplicates.pairs[DUPLICATE]
    for reason, pairs in duplicates.pairs.items():
        for later, first in sorted(pairs.items()):
            if not start <= later < end or (reason == NEAR_DUPLICATE and later in exact):
                continue
            text, where = parts.document(later - start)
            other = parts.document(first - start)[0] if start <= first < end else ""
            yield dropped(reason, where, text, "" if reason == DUPLICATE else other).line()


# ---------------------------------------------------------------------------------------------------------------------
# The end


def _write_index(directory: Path, jobs: list[Job], columns: list[Columns], settings: Clean) -> None:
    """Say which keys there are, for later runs to read; remove those of sources that are no longer named."""
    if settings.dedup == "off":
        shutil.rmtree(directory / KEYS, ignore_errors=True)
        return
    entries = [
        {"folder": job.folder, **read_json(own.directory / INDEX)} for job, own in zip(jobs, columns, strict=True)
    ]
    index = {
        "dedup": settings.dedup,
        "bands": settings.bands,
        "columns": entries,
        "fingerprint": sha256_json([settings.dedup, settings.bands, entries]),
    }
    path = directory / KEYS / INDEX
    if not path.is_file() or read_json(path) != index:
        write_json(path, index)
    for folder in (directory / KEYS).iterdir():
        if folder.is_dir() and folder.name not in {job.folder for job in jobs}:
            shutil.rmtree(folder)


def _account(job: Job) -> Tally:
    manifest = job.final.manifest
    assert manifest is not None
    return Tally.from_json(manifest["accounting"])


def _summary(jobs: list[Job], open_jobs: list[Job], seconds: float) -> str:
    """What was read and kept, by source, and why the rest was dropped."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("read", "kept", "dropped", "MB on disk", "MB of text kept"):
        table.add_column(name, justify="right")
    total, size = Tally(), 0
    for job in jobs:
        account, on_disk = _account(job), input_size([job.source.path])
        total.merge(account)
        size += on_disk
        _add_row(table, job.folder, account, on_disk)
    if len(jobs) > 1:
        _add_row(table, "all", total, size)
    text = io.StringIO()
    console = Console(file=text, width=100)
    console.print(table)
    lines = [f"  {line.rstrip()}" for line in text.getvalue().splitlines()]
    for title, counts in (("dropped", total.dropped), ("changed", total.repaired)):
        if counts:
            lines.append(f"  {title}: {', '.join(f'{count:,} {reason}' for reason, count in counts.most_common())}")
    if open_jobs:
        worked = input_size([job.source.path for job in open_jobs]) / 1e6
        lines.append(f"  {worked:,.1f} MB in {duration(seconds)}: {worked / seconds:.1f} MB/s")
    return "\n".join(lines)


def _add_row(table: Any, name: str, account: Tally, on_disk: int) -> None:
    share = 1 - account.written / account.read if account.read else 0.0
    numbers = f"{account.read:,}", f"{account.written:,}", f"{share:.1%}", f"{on_disk / 1e6:,.1f}"
    table.add_row(name, *numbers, f"{account.bytes / 1e6:,.1f}")
