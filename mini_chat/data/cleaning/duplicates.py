"""Finding, among any number of documents, those that came before: exactly, or nearly.

Each document has keys (`cleaner.Cleaner`): 128 bits of a hash of its text, and a key for each band of its MinHash
signature. They lie on the disk in columns, one file a key, in the documents' order. A column is read once; if it does
not fit the memory, its keys are dealt to as many files as make each of them fit, which are sorted one after another:
the work is linear in the documents, the memory a matter of the setting, the result the same whatever the setting.

A document is a duplicate if an earlier one has its hash; it is a near duplicate if in some band the first document with
its key is no copy of it, and estimated to be similar enough. "The first" and not "any earlier one" keeps the work
linear where thousands share a key; what was itself dropped still counts as earlier, as in the clusters of datatrove.
Which documents are dropped depends on the documents and their order alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mini_chat.data.cleaning.cleaner import EXACT_KEYS
from mini_chat.data.cleaning.minhash import similarity
from mini_chat.data.cleaning.tokens import I64, U64
from mini_chat.errors import UserError

KEY_BYTES = 8
_CHUNK_KEYS = 1 << 16  # read at once
_BYTES_PER_KEY = 128  # while a bucket is sorted: keys, numbers, order, their sorted copies, and all of it in pairs
_MAX_BUCKETS = 512  # files open at once
_PAIRS = 1 << 13  # compared at once
EXAMPLES = 20
"""Pairs of each column that are remembered, to be shown."""

Bits = npt.NDArray[np.uint8]


class Columns(NamedTuple):
    """The keys of some documents on the disk: `key-00.bin`, `key-01.bin`, …, 8 bytes a document in each."""

    directory: Path
    documents: int

    def file(self, key: int) -> Path:
        """The column of one key."""
        return self.directory / f"key-{key:02d}.bin"


@dataclass(frozen=True)
class Task:
    """One band (or, if `band` is None, the exact hash) of all documents, to be searched for what came before."""

    columns: tuple[Columns, ...]
    band: int | None
    bands: int
    similarity: float
    memory_bytes: int
    scratch: Path


def write_columns(directory: Path, rows: Iterator[U64], keys: int) -> int:
    """Turn rows of keys [documents, keys] into columns in an existing directory; returns how many documents."""
    documents = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(Columns(directory, 0).file(key), "wb")) for key in range(keys)]
        for rows_DK in rows:
            documents += len(rows_DK)
            for key, file in enumerate(files):
                file.write(np.ascontiguousarray(rows_DK[:, key]).tobytes())
    return documents


def tasks(columns: Sequence[Columns], bands: int, wanted: float, memory_bytes: int, scratch: Path) -> list[Task]:
    """What is to be done: the exact hash first, then each band. `memory_bytes` is for one task."""
    return [
        Task(tuple(columns), band, bands, wanted, memory_bytes, scratch / ("exact" if band is None else f"{band:02d}"))
        for band in (None, *range(bands))
    ]


class Found(NamedTuple):
    """The documents that came before."""

    bits: Bits
    """A bit for each document, as `numpy.packbits` packs them."""
    pairs: I64
    """The first few of each column's, and for each the earlier document [pairs, 2]."""


def find(task: Task) -> Found:
    """Search one key of all documents.

    Raises:
        UserError: no space for the scratch files.
    """
    total = sum(column.documents for column in task.columns)
    bits = np.zeros((total + 7) // 8, np.uint8)
    pairs = np.zeros((0, 2), np.int64)
    ends = np.cumsum([column.documents for column in task.columns])
    key = 0 if task.band is None else EXACT_KEYS + task.band
    try:
        for portions in deal(_read(task.columns, key), total, task.memory_bytes, task.scratch):
            known: tuple[U64, I64] | None = None
            for keys, numbers in portions:
                if known is not None:  # a bucket in several portions: many documents with few keys
                    unique, places = np.unique(known[0], return_index=True)
                    keys = np.concatenate((unique, keys))
                    numbers = np.concatenate((known[1][places], numbers))
                known = keys, numbers
                later, first = _later_and_first(keys, numbers)
                for start in range(0, len(later), _PAIRS):
                    pair = later[start : start + _PAIRS], first[start : start + _PAIRS]
                    same = _are_same(task, *pair)
                    hits = pair[0][same]
                    np.bitwise_or.at(bits, hits >> 3, np.uint8(128) >> (hits & 7).astype(np.uint8))
                    pairs = _first_pairs(ends, pairs, hits, pair[1][same])
    except OSError as error:
        raise UserError(
            f"{task.scratch}: cannot write ({error.strerror or error}); free space and run the same command again"
        ) from error
    finally:
        shutil.rmtree(task.scratch, ignore_errors=True)
    return Found(bits, pairs)


def frequent(keys: Iterator[U64], total: int, least: int, memory_bytes: int, scratch: Path) -> U64:
    """The keys that come `least` times or more, sorted; their order and the memory make no difference."""
    result = []
    chunks = ((chunk, np.zeros(len(chunk), np.int64)) for chunk in keys)
    for portions in deal(chunks, total, memory_bytes, scratch):
        known, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for portion, _ in portions:
            values, times = np.unique(portion, return_counts=True)
            merged, place = np.unique(np.concatenate((known, values)), return_inverse=True)
            counts = np.bincount(place, np.concatenate((counts, times)), len(merged)).astype(np.int64)
            known = merged
        result.append(known[counts >= least])
    return np.sort(np.concatenate(result or [np.zeros(0, np.uint64)]))


def read_bits(path: Path, start: int, end: int) -> npt.NDArray[np.bool_]:
    """Bits `start` to `end` of a file of packed ones."""
    first = start // 8
    packed = np.fromfile(path, np.uint8, (end + 7) // 8 - first, offset=first)
    return np.unpackbits(packed)[start % 8 : start % 8 + end - start].astype(bool)


def _first_pairs(ends: I64, pairs: I64, later: I64, first: I64) -> I64:
    """The pairs with the lowest numbers of each column's documents, a few of each; `ends`: where columns end."""
    full = np.bincount(np.searchsorted(ends, pairs[:, 0], "right"), minlength=len(ends)) >= EXAMPLES
    where = np.searchsorted(ends, later, "right")
    if full[where].all() and (not len(later) or later[0] > pairs[:, 0].max()):
        return pairs
    pairs = np.concatenate((pairs, np.stack((later, first), axis=1)))
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    where = np.searchsorted(ends, pairs[:, 0], "right")
    return pairs[np.concatenate([np.flatnonzero(where == number)[:EXAMPLES] for number in range(len(ends))])]


def _later_and_first(keys: U64, numbers: I64) -> tuple[I64, I64]:
    """Pairs of documents with the same key: each but the first, and the first; in order of the former."""
    order = np.argsort(keys)
    keys, numbers = keys[order], numbers[order]
    same = np.concatenate(([False], keys[1:] == keys[:-1]))[: len(keys)]
    several = same.copy()
    several[:-1] |= same[1:]
    numbers, begins = numbers[several], np.flatnonzero(~same[several])
    if not len(begins):
        return numbers, numbers
    firsts = np.repeat(np.minimum.reduceat(numbers, begins), np.diff(np.concatenate((begins, [len(numbers)]))))
    later = numbers != firsts
    order = np.argsort(numbers[later])
    return numbers[later][order], firsts[later][order]


def _are_same(task: Task, later: I64, first: I64) -> npt.NDArray[np.bool_]:
    """Whether the pairs are what is searched for: of equal hash, or else of similar signatures and another hash."""
    second = 1 if task.band is None else 0  # the first half of the hash is what the pairs of the exact search share
    same = _gather(task.columns, second, later) == _gather(task.columns, second, first)
    if task.band is None:
        return same
    other = np.flatnonzero(~same)  # copies are found as such, and would fill the first few pairs
    signatures = [
        np.stack([_gather(task.columns, EXACT_KEYS + band, numbers[other]) for band in range(task.bands)], axis=1)
        for numbers in (later, first)
    ]
    found = np.zeros(len(later), bool)
    found[other] = similarity(*signatures) >= task.similarity
    return found


def _gather(columns: Sequence[Columns], key: int, numbers: I64) -> U64:
    """One key of documents given by number."""
    ends = np.cumsum([column.documents for column in columns])
    where = np.searchsorted(ends, numbers, "right")
    values = np.empty(len(numbers), np.uint64)
    for number in np.unique(where).tolist():
        here = where == number
        column = np.memmap(columns[number].file(key), np.uint64, "r")
        values[here] = column[numbers[here] - (ends[number] - columns[number].documents)]
    return values


def deal(
    chunks: Iterator[tuple[U64, I64]], total: int, memory_bytes: int, scratch: Path
) -> Iterator[Iterator[tuple[U64, I64]]]:
    """Deal keys and numbers to buckets that fit the memory, equal keys to the same one, in the order they come in.

    Yields each bucket as portions of as much as fits: one, unless very many keys are equal.
    """
    fitting = max(memory_bytes // _BYTES_PER_KEY, 1)
    count = min(-(-total // fitting), _MAX_BUCKETS)
    if count <= 1:
        parts = [*chunks] or [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
        yield iter([(np.concatenate([keys for keys, _ in parts]), np.concatenate([numbers for _, numbers in parts]))])
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    paths = [scratch / f"{bucket:03d}.bin" for bucket in range(count)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb", buffering=1 << 12)) for path in paths]
        for keys, numbers in chunks:
            bucket = (keys >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
            order = np.argsort(bucket, kind="stable")
            rows = np.stack((keys[order], numbers[order].astype(np.uint64)), axis=1)
            ends = np.searchsorted(bucket[order], np.arange(count), "right").tolist()
            for file, start, end in zip(files, [0, *ends], ends, strict=False):
                if end > start:
                    file.write(rows[start:end].tobytes())
    for path in paths:
        yield _portions(path, fitting)
        path.unlink()
    scratch.rmdir()


def _portions(path: Path, most: int) -> Iterator[tuple[U64, I64]]:
    with open(path, "rb") as file:
        while data := file.read(most * 2 * KEY_BYTES):
            rows = np.frombuffer(data, np.uint64).reshape(-1, 2)
            yield np.ascontiguousarray(rows[:, 0]), rows[:, 1].astype(np.int64)


def _read(columns: Sequence[Columns], key: int) -> Iterator[tuple[U64, I64]]:
    number = 0
    for column in columns:
        with open(column.file(key), "rb") as file:
            while data := file.read(_CHUNK_KEYS * KEY_BYTES):
                keys = np.frombuffer(data, np.uint64)
                yield keys, np.arange(number, number + len(keys))
                number += len(keys)
