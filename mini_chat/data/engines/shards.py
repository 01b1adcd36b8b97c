"""Shards on an engine: encode and scatter, then judge, then gather, each dealt to tasks.

1. *Encode*: a stretch of files → sorted runs (`document_runs`), in a directory of its own.
2. *Copies*: the repetitions of a run's documents, where there are any (`mixing`).
3. *Judge*: some bins of all runs, merged → which documents are trained on, and how long each of those is.
4. *Gather*: with all lengths known, where every shard begins and ends is known as well: a shard is a task's.

The order of the documents is a function of their keys, and a shard is full where the next document no longer fits, so
the bytes are those of `write_shards.write_train`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_chat.config import Machine
from mini_chat.data.cleaning.duplicates import read_bits
from mini_chat.data.document_runs import (
    ENCODED,
    Account,
    Batch,
    BatchEncoder,
    Encoded,
    batches,
    count,
    read_accounts,
    write_runs,
)
from mini_chat.data.documents import document_files, read_document_files
from mini_chat.data.engines.blocks import Block
from mini_chat.data.engines.executors import run_block, tasks_of
from mini_chat.data.engines.stretches import deal, dealt
from mini_chat.data.inputs import InputFile, nothing_usable, stretches
from mini_chat.data.mixing import Mix, copies_of
from mini_chat.data.near_duplicates import NearDuplicates
from mini_chat.data.shuffle import BINS, HOLDING_BYTES, Run, cut, merged
from mini_chat.data.tally import Tally
from mini_chat.data.token_shards import SUFFIXES
from mini_chat.data.write_shards import (
    KEPT,
    SCRATCH,
    Request,
    Train,
    count_dropped,
    held_out_grams,
    judge,
    nothing_dropped,
    shard_writer,
)
from mini_chat.errors import UserError
from mini_chat.files import atomic_open, read_json, sha256_json, write_json

KEPT_BITS = "kept.bits"


class EncodeBlock(Block):
    """Stretches of the sources' files → runs, each stretch's in a directory of its own."""

    def __init__(self, directory: Path, request: Request) -> None:
        super().__init__("shards: encode", directory)
        self.request = request

    def work(self, rank: int, world_size: int) -> None:
        """Encode every `world_size`-th stretch."""
        plan, run_bytes = self.request.plan, self.request.settings.memory_bytes // 4
        made: list[BatchEncoder] = []  # once, when it is needed

        def encoder() -> Callable[[Batch], Encoded]:
            made.extend([] if made else [BatchEncoder(plan)])
            return made[0]

        for number, (source, places) in dealt(self.directory, rank, world_size):
            directory, tally = self.directory / f"{number:05d}", Tally()
            if (directory / ENCODED).is_file():
                continue
            files = [InputFile(Path(path), kind) for _, path, kind in places]
            numbers = {path: place for place, path, _ in places}
            documents = read_document_files(self.request.sources[source], files, tally, self.request.max_line_bytes)
            items = batches(source, numbers, documents, plan.languages)
            write_runs(plan, items, tally, encoder, directory, run_bytes, 1)
            self.count(tally)


def encode_by_engine(request: Request, directory: Path, machine: Machine) -> tuple[list[Path], Account, Tally]:
    """Encode all documents by the machine's engine; the directories of the runs, and the accounts as of one process.

    Raises:
        UserError: a task's own, sources that cannot be read or have nothing usable in them.
    """
    reader, found, of_source = Tally(), [], []
    skipped = [Tally() for _ in request.sources]
    for number, source in enumerate(request.sources):
        files = document_files(source, skipped[number])
        numbers = {file.path: place for place, file in enumerate(files)}
        for stretch in stretches(files):
            found.append([number, [[numbers[file.path], str(file.path), file.format] for file in stretch]])
            of_source.append(number)
    deal(directory, found)
    run_block(EncodeBlock(directory, request), tasks_of(machine, len(found)), machine)
    account = Account.empty(len(request.sources), len(request.plan.languages))
    runs = [directory / f"{number:05d}" for number in range(len(found))]
    for number, source in enumerate(request.sources):
        own = skipped[number]
        for place, stretch_source in zip(runs, of_source, strict=True):
            if stretch_source == number:
                runs_account, tally = read_accounts(place)
                account.merge(runs_account)
                own.merge(tally)
        if not own.written:
            raise nothing_usable(source.path, own)
        reader.merge(own)
    return runs, account, reader


class Merge(NamedTuple):
    """What is merged: all that the tasks of the second pass need to know."""

    request: Request
    runs: list[Path]
    mix: Mix
    directory: Path
    """Of the shards."""
    shape: tuple[int, ...]
    """Sources and languages."""

    @property
    def memory_bytes(self) -> int:
        """For merging."""
        return self.request.settings.memory_bytes // 4


class CopyBlock(Block):
    """Runs → runs of their documents' repetitions."""

    def __init__(self, directory: Path, merge: Merge) -> None:
        super().__init__("shards: repetitions", directory)
        self.merge = merge

    def work(self, rank: int, world_size: int) -> None:
        """Write the repetitions of every `world_size`-th run."""
        for number in range(rank, len(self.merge.runs), world_size):
            copies_of(number, self.merge.runs[number], self.merge.mix.epochs, self.directory, self.merge.memory_bytes)


class JudgeBlock(Block):
    """Bins of all runs → which documents are kept, their lengths, and the account."""

    def __init__(self, directory: Path, merge: Merge) -> None:
        super().__init__("shards: judge", directory)
        self.merge = merge

    def work(self, rank: int, world_size: int) -> None:
        """Judge every `world_size`-th stretch of bins."""
        request, dtype = self.merge.request, self.merge.request.plan.dtype
        names = [path.name.removesuffix(SUFFIXES["tokens"]) for path in sorted(self.merge.directory.glob("valid-*.ds"))]
        held_out = held_out_grams(self.merge.directory, names, dtype, request.settings.near_duplicates)
        for number, (low, high) in dealt(self.directory, rank, world_size):
            path = judged(self.directory, number)
            if path.is_file():
                continue
            kept, lengths = [np.zeros(0, bool)], [np.zeros(0, np.uint32)]
            counts, dropped = np.zeros((3, *self.merge.shape), np.int64), nothing_dropped()
            for documents in merged(self.merge.runs, self.merge.memory_bytes, low=low, high=high):
                reasons = judge(documents, self.merge.mix, held_out, dtype)
                kept.append(reasons == KEPT)
                infos = documents.infos[kept[-1]]
                lengths.append((infos["size"] // dtype.itemsize).astype(np.uint32))
                counts += count(infos, self.merge.shape, dtype.itemsize)
                count_dropped(dropped, documents.infos, reasons)
            with atomic_open(path) as file:
                left_out = np.array(list(dropped.values()), np.int64)
                np.savez(
                    file, kept=np.concatenate(kept), lengths=np.concatenate(lengths), counts=counts, dropped=left_out
                )


def judged(directory: Path, number: int) -> Path:
    """Where a task of `JudgeBlock` leaves what it found."""
    return directory / f"{number:05d}.npz"


class GatherBlock(Block):
    """Documents from one place in the order to another → a shard."""

    def __init__(self, directory: Path, merge: Merge, kept: Path) -> None:
        super().__init__("shards: gather", directory)
        self.merge, self.kept = merge, kept

    def work(self, rank: int, world_size: int) -> None:
        """Write every `world_size`-th shard."""
        for number, (start, end) in dealt(self.directory, rank, world_size):
            entry = self.directory / f"{number:05d}.json"
            if not entry.is_file():
                write_json(entry, self._shard(number, start, end))

    def _shard(self, number: int, start: int, end: int) -> dict[str, Any]:
        dtype, place = self.merge.request.plan.dtype, start
        # A writer that believes the shards before to be there names its own as the next.
        writer = shard_writer(self.merge.request, self.merge.directory, "train", [{}] * number)
        for documents in merged(self.merge.runs, self.merge.memory_bytes, skip=start):
            here = min(len(documents.infos), end - place)
            sizes = documents.infos["size"][:here] // dtype.itemsize
            kept = read_bits(self.kept, place, place + here)
            tokens = np.frombuffer(documents.payload, dtype, int(sizes.sum(dtype=np.int64)))
            if kept.any():
                writer.extend(tokens[np.repeat(kept, sizes)], sizes[kept])
            place += here
            if place == end:
                break
        writer.flush()
        return writer.files[-1]


def merge_by_engine(
    machine: Machine,
    request: Request,
    runs: list[Path],
    mix: Mix,
    held_out: NearDuplicates,
    directory: Path,
    account: Account,
) -> Train:
    """What `write_shards.merge_runs` does, by the machine's engine.

    Raises:
        UserError: a task's own, or what a task left is not there.
    """
    scratch = directory / SCRATCH / "copies"  # the part of the scratch that goes when the second pass is asked anew
    scratch.mkdir(parents=True, exist_ok=True)
    merge = Merge(request, runs, mix, directory, account.counts.shape[1:])
    if (mix.epochs > 1).any():
        run_block(CopyBlock(scratch, merge), tasks_of(machine, len(runs)), machine)
        copies = [
            path
            for number, run in enumerate(runs)
            for path in copies_of(number, run, mix.epochs, scratch, merge.memory_bytes)
        ]
        merge = merge._replace(runs=runs + copies)
    bins = [[piece.start, piece.stop] for piece in cut(_bin_sizes(merge.runs), 4 * merge.memory_bytes, BINS)]
    places = scratch / f"judged-{sha256_json(bins)[:8]}"  # another memory_bytes, and the bins are dealt otherwise
    deal(places, bins)
    run_block(JudgeBlock(places, merge), tasks_of(machine, len(bins)), machine)
    shards, train = _cut_into_shards(places, len(bins), merge)
    gathered = scratch / "gathered"
    deal(gathered, shards)
    run_block(GatherBlock(gathered, merge, places / KEPT_BITS), tasks_of(machine, len(shards)), machine)
    files = [read_json(gathered / f"{number:05d}.json") for number in range(len(shards))]
    train.entry = {kind: sum(file[kind] for file in files) for kind in ("documents", "tokens")} | {"files": files}
    return train


def _bin_sizes(runs: list[Path]) -> np.ndarray:
    """What the documents of each bin take in memory, int64 (BINS,)."""
    sizes = np.zeros(BINS, np.int64)
    for path in runs:
        run = Run(path)
        sizes += np.diff(run.counts) * HOLDING_BYTES + np.diff(run.offsets)
    return sizes


def _cut_into_shards(places: Path, tasks: int, merge: Merge) -> tuple[list[list[int]], Train]:
    """Where each shard begins and ends among all documents in order, and the account; what is kept goes to a file.

    Raises:
        UserError: what a task left is not there.
    """
    most = max(1, merge.request.settings.shard_bytes // merge.request.plan.dtype.itemsize)
    train = Train({}, np.zeros((3, *merge.shape), np.int64), nothing_dropped())
    shards: list[list[int]] = []
    filled = place = 0  # tokens of the last shard; documents so far
    rest = np.zeros(0, bool)
    with atomic_open(places / KEPT_BITS) as file:
        for number in range(tasks):
            found = _judgement(judged(places, number))
            train.counts += found["counts"]
            for own, more in zip(train.dropped.values(), found["dropped"].tolist(), strict=True):
                own[:] = [own[0] + more[0], own[1] + more[1]]
            kept = place + np.flatnonzero(found["kept"])
            ends = np.concatenate([[0], np.cumsum(found["lengths"], dtype=np.int64)])
            at = 0
            while at < len(kept):
                to = int(np.searchsorted(ends, ends[at] + most - filled, side="right")) - 1
                if to <= at and filled:
                    filled = 0
                    continue
                to = max(to, at + 1)  # a document longer than a shard has one of its own
                if not filled:
                    shards.append([int(kept[at]), 0])
                shards[-1][1] = int(kept[to - 1]) + 1
                filled += int(ends[to] - ends[at])
                at = to
            rest = np.concatenate([rest, found["kept"]])
            whole = len(rest) // 8 * 8
            file.write(np.packbits(rest[:whole]).tobytes())
            rest = rest[whole:]
            place += len(found["kept"])
        file.write(np.packbits(rest).tobytes())
    return shards, train


def _judgement(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in ("kept", "lengths", "counts", "dropped")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not what its task left; remove {path.parent} and run again") from error
