"""The shuffle, in a memory that is set and not the corpus': an external merge sort by key.

First, documents are collected up to a size, sorted by key, and written as a *run*. Then all runs are read side by side
from the lowest key to the highest, as many keys at a time as fit the memory. What comes out depends on the keys alone,
not on how many runs there are or who wrote them. Every byte is written and read once, in long stretches.

A run is one file: how many documents and payload bytes lie below each of BINS equal ranges of keys, the keys in order,
what is known of each document (INFO), and the documents' bytes, which nobody looks into here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_chat.data.keys import document_keys, stream
from mini_chat.errors import UserError
from mini_chat.files import atomic_open

INFO = np.dtype([("size", "<u4"), ("bytes", "<u4"), ("language", "<u2"), ("source", "<u2"), ("copy", "<u4")])
"""Of a document: payload [bytes], text [bytes], numbers of its language and its source, which copy it is."""

BIN_BITS = 10
BINS = 1 << BIN_BITS
HEADER_BYTES = 2 * 8 * (BINS + 1)
RECORD_BYTES = 8 + INFO.itemsize
HOLDING_BYTES = 96  # what a document in memory takes beside its payload: its record, and its places in some orders
COPY_DOCUMENTS = 16_384  # brought into order at once
COPY_BYTES = 4 << 20  # but no more than this, or one document


class Documents(NamedTuple):
    """Some documents: keys, uint64 (n,); INFO (n,); their bytes one after the other."""

    keys: np.ndarray
    infos: np.ndarray
    payload: bytes | bytearray


class RunWriter:
    """Collects documents and writes a sorted run whenever there are `run_bytes` of them."""

    def __init__(self, run_bytes: int) -> None:
        self.run_bytes = run_bytes
        self.pending: list[Documents] = []
        self.pending_bytes = 0

    @property
    def full(self) -> bool:
        """Whether a run should be written."""
        return self.pending_bytes >= self.run_bytes

    def add(self, documents: Documents) -> None:
        """Collect documents."""
        if len(documents.keys):
            self.pending.append(documents)
            self.pending_bytes += len(documents.keys) * HOLDING_BYTES + len(documents.payload)

    def write(self, path: Path) -> None:
        """Write what was collected as a run, whole or not at all.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        keys = np.concatenate([d.keys for d in self.pending]) if self.pending else np.zeros(0, np.uint64)
        infos = np.concatenate([d.infos for d in self.pending]) if self.pending else np.zeros(0, INFO)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        edges = np.searchsorted(keys, np.arange(BINS, dtype=np.uint64) << np.uint64(64 - BIN_BITS))
        offsets = np.concatenate([[0], np.cumsum(infos["size"][order], dtype=np.uint64)])
        counts = np.append(edges, len(keys))
        with atomic_open(path) as file:
            file.write(np.concatenate([counts, offsets[counts]]).astype("<u8").tobytes())
            file.write(keys.astype("<u8").tobytes())
            file.write(infos[order].tobytes())
            for _, piece in rearranged([d.payload for d in self.pending], infos["size"], order):
                file.write(piece)
        self.pending, self.pending_bytes = [], 0


def rearranged(buffers: list[bytes | bytearray], sizes: np.ndarray, order: np.ndarray) -> Iterator[tuple[slice, bytes]]:
    """The documents that lie in `buffers`, of `sizes` [bytes], in `order`: slices of it, each with their bytes."""
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - sizes
    first_byte = np.concatenate([[0], np.cumsum([len(buffer) for buffer in buffers])])
    views = [memoryview(buffer) for buffer in buffers]
    for part in cut(sizes[order], COPY_BYTES, COPY_DOCUMENTS):
        chosen = order[part]
        # An empty document may stand at the end of a buffer and be found in the next: of no bytes, it is all the same.
        which = np.searchsorted(first_byte, starts[chosen], side="right") - 1
        which = np.minimum(which, len(views) - 1)
        begin = starts[chosen] - first_byte[which]
        places = zip(which.tolist(), begin.tolist(), (begin + sizes[chosen]).tolist(), strict=True)
        yield part, b"".join([views[number][start:end] for number, start, end in places])


def cut(sizes: np.ndarray, most_bytes: int, most_documents: int) -> Iterator[slice]:
    """Slices of consecutive documents within both limits, or of one document that exceeds them."""
    ends = np.cumsum(sizes, dtype=np.int64)
    at = 0
    while at < len(sizes):
        before = int(ends[at - 1]) if at else 0
        to = int(np.searchsorted(ends, before + most_bytes, side="right"))
        to = min(max(to, at + 1), at + most_documents)
        yield slice(at, to)
        at = to


class Run:
    """A run on disk, read by pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = np.frombuffer(self._read(0, HEADER_BYTES), "<u8").astype(np.int64)
        self.counts, self.offsets = header[: BINS + 1], header[BINS + 1 :]
        self.documents = int(self.counts[-1])
        expected = HEADER_BYTES + self.documents * RECORD_BYTES + int(self.offsets[-1])
        if path.stat().st_size != expected:
            raise UserError(f"{path}: damaged; remove {path.parent} and run again")

    def heads(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and infos of the documents in bins low … high - 1."""
        first, count = int(self.counts[low]), int(self.counts[high] - self.counts[low])
        keys = np.frombuffer(self._read(HEADER_BYTES + 8 * first, 8 * count), "<u8")
        infos_at = HEADER_BYTES + 8 * self.documents + INFO.itemsize * first
        return keys, np.frombuffer(self._read(infos_at, INFO.itemsize * count), INFO)

    def payload(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with payload from `offset` on."""
        self._read_into(HEADER_BYTES + RECORD_BYTES * self.documents + offset, buffer)

    def whole(self) -> Documents:
        """All of it."""
        payload = bytearray(int(self.offsets[-1]))
        self.payload(0, memoryview(payload))
        return Documents(*self.heads(0, BINS), payload)

    def _read(self, at: int, size: int) -> bytearray:
        data = bytearray(size)
        self._read_into(at, memoryview(data))
        return data

    def _read_into(self, at: int, buffer: memoryview) -> None:
        # Read and not mapped: mapped pages would count as the process's memory.
        with open(self.path, "rb", buffering=0) as file:
            file.seek(at)
            while buffer:
                if not (got := file.readinto(buffer)):
                    raise UserError(
                        f"{self.path}: shorter than it was written; remove {self.path.parent} and run again"
                    )
                buffer = buffer[got:]


def merged(
    paths: Iterable[Path], memory_bytes: int, skip: int = 0, low: int = 0, high: int = BINS
) -> Iterator[Documents]:
    """The documents of all runs from the lowest key to the highest, in pieces that fit the memory.

    Of equal keys (of different files, once in 2^64 pairs) the earlier run's comes first.

    Args:
        memory_bytes: payload and records held at a time; a document that exceeds it comes alone.
        skip: so many documents are passed over, without reading them.
        low, high: only the documents in bins `low` to `high` - 1.
    """
    runs = [run for run in map(Run, paths) if run.documents]
    counts = np.sum([np.diff(run.counts) for run in runs], axis=0) if runs else np.zeros(BINS, np.int64)
    sizes = counts * HOLDING_BYTES
    for run in runs:
        sizes = sizes + np.diff(run.offsets)
    for bins in cut(sizes[low:high], memory_bytes, BINS):
        first, last = low + bins.start, low + bins.stop
        documents = int(counts[first:last].sum())
        if skip >= documents:
            skip -= documents
            continue
        yield from _merged_bins(runs, first, last, memory_bytes, skip)
        skip = 0


def _merged_bins(runs: list[Run], low: int, high: int, memory_bytes: int, skip: int) -> Iterator[Documents]:
    """What is in some bins; read by slices of the sorted order where all of it exceeds the memory."""
    heads = [run.heads(low, high) for run in runs]
    keys = np.concatenate([keys for keys, _ in heads])
    infos = np.concatenate([infos for _, infos in heads])
    order = np.argsort(keys, kind="stable")
    # Where each document's bytes lie: the first document of each run, and its run's offset there.
    starts = np.concatenate([[0], np.cumsum(infos["size"], dtype=np.int64)])
    run_first = np.concatenate([[0], np.cumsum([len(keys) for keys, _ in heads])])
    run_offset = [int(run.offsets[low]) - int(starts[first]) for run, first in zip(runs, run_first, strict=False)]
    del heads
    order = order[skip:]
    for part in cut(infos["size"][order].astype(np.int64) + HOLDING_BYTES, memory_bytes, len(order)):
        chosen = order[part]
        ascending = np.sort(chosen)  # run by run, in each the documents are neighbours
        sizes = infos["size"][ascending].astype(np.int64)
        buffer = bytearray(int(sizes.sum()))
        view, at = memoryview(buffer), 0
        edges = np.searchsorted(ascending, run_first)
        for number, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            if first < last:
                length = int(starts[ascending[last - 1] + 1] - starts[ascending[first]])
                runs[number].payload(run_offset[number] + int(starts[ascending[first]]), view[at : at + length])
                at += length
        assert at == len(buffer), "documents of a slice are neighbours in their runs"
        for piece, payload in rearranged([buffer], sizes, np.searchsorted(ascending, chosen)):
            yield Documents(keys[chosen[piece]], infos[chosen[piece]], payload)


def shuffled(payloads: Iterable[bytes], directory: Path, memory_bytes: int, seed: int) -> Iterator[bytes]:
    """The payloads in an order drawn by the seed, by way of runs in `directory`, which are gone at the end."""
    paths: list[Path] = []
    writer = RunWriter(memory_bytes // 4)

    def write() -> None:
        paths.append(directory / f"run-{len(paths):05d}")
        writer.write(paths[-1])

    place, number = np.array([stream(seed, 0, 0)], np.uint64), 0
    for batch in _batches(payloads):
        infos = np.zeros(len(batch), INFO)
        infos["size"] = [len(payload) for payload in batch]
        numbers = np.arange(number, number + len(batch), dtype=np.uint64)
        writer.add(Documents(document_keys(place, numbers), infos, b"".join(batch)))
        number += len(batch)
        if writer.full:
            write()
    write()
    for documents in merged(paths, memory_bytes // 4):
        at = 0
        for size in documents.infos["size"].tolist():
            yield bytes(documents.payload[at : at + size])
            at += size
    for path in paths:
        path.unlink()


def _batches(payloads: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lists of payloads that are worth sorting together and bounded in memory."""
    batch: list[bytes] = []
    size = 0
    for payload in payloads:
        batch.append(payload)
        size += len(payload)
        if len(batch) == COPY_DOCUMENTS or size >= COPY_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
