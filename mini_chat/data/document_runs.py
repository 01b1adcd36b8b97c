"""The first pass of making shards: documents → sorted runs of tokens, on all processes, going on after a kill.

Each document is read, held out or not by the hash of its text, encoded once, and written with its key. A run is written
every so many bytes, the account of all that it and the runs before it hold beside it, last; after a kill, whole runs
with an account are kept and the batches in them are passed over. What is in the runs together is a function of the
request; where one ends and the next begins is not, and does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_chat.config import Source
from mini_chat.console import progress
from mini_chat.data.documents import Document, document_files, read_documents
from mini_chat.data.fast_encoding import FastEncoder
from mini_chat.data.holdout import holdout_hash, holdout_limit
from mini_chat.data.inputs import input_size
from mini_chat.data.keys import WEIGHT, document_keys, stream, times_seen
from mini_chat.data.shuffle import INFO, Documents, RunWriter
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError
from mini_chat.files import read_json, write_json
from mini_chat.parallel import ordered_map

BATCH_DOCUMENTS = 2048  # encoded at once
BATCH_CHARACTERS = 1_000_000  # but no more text than this, or one document
ENCODED = "encoded.json"
DOCUMENTS, TOKENS, BYTES = range(3)
"""Rows of a table of counts."""


class Plan(NamedTuple):
    """All that decides what becomes of a document in the first pass; goes to every process."""

    tokenizer: Path
    end: int
    """The id that ends a document."""
    dtype: np.dtype
    seed: int
    validation_share: float
    languages: tuple[str, ...]
    weights: tuple[float, ...]
    """Of the sources."""


class Batch(NamedTuple):
    """Documents of one source: numbers of their files in it, their numbers there, their languages, their texts."""

    source: int
    files: list[int]
    numbers: list[int]
    languages: list[int]
    texts: list[str]


class Encoded(NamedTuple):
    """What became of a batch."""

    train: Documents
    held_out: Documents
    """Here the key is the hash of the text."""
    left_out: tuple[int, int]
    """Documents and bytes of text that a source's weight below 1 leaves out."""


class BatchEncoder:
    """In a process: a batch of texts → tokens with their keys."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.limit = plan, holdout_limit(plan.validation_share)
        self.encoder = FastEncoder.from_directory(plan.tokenizer)

    def __call__(self, batch: Batch) -> Encoded:
        plan = self.plan
        streams = {file: stream(plan.seed, batch.source, file) for file in set(batch.files)}
        places = np.array([streams[file] for file in batch.files], np.uint64)
        keys = document_keys(places, np.array(batch.numbers, np.uint64))
        hashes = [holdout_hash(text) for text in batch.texts] if self.limit else [2**64 - 1] * len(batch.texts)
        held_out = np.array([value < self.limit for value in hashes], bool)
        wanted = held_out | (times_seen(keys, min(1.0, plan.weights[batch.source]), WEIGHT) > 0)
        text_bytes = np.array([len(text) if text.isascii() else len(text.encode()) for text in batch.texts])
        tokens = self.encoder.encode_documents([batch.texts[number] for number in np.flatnonzero(wanted)])
        infos = np.zeros(len(batch.texts), INFO)
        infos["bytes"], infos["language"], infos["source"] = text_bytes, batch.languages, batch.source
        infos["size"][wanted] = [plan.dtype.itemsize * (len(ids) + 1) for ids in tokens]
        keys[held_out] = np.array(hashes, np.uint64)[held_out]
        apart = held_out[wanted].tolist()
        return Encoded(
            self._documents(keys, infos, wanted & ~held_out, [t for t, a in zip(tokens, apart, strict=True) if not a]),
            self._documents(keys, infos, held_out, [t for t, a in zip(tokens, apart, strict=True) if a]),
            (int((~wanted).sum()), int(text_bytes[~wanted].sum())),
        )

    def _documents(self, keys: np.ndarray, infos: np.ndarray, which: np.ndarray, tokens: list[np.ndarray]) -> Documents:
        """The documents that a mask chooses, whose tokens these are, each with the end token behind it."""
        infos = infos[which]
        flat = np.full(int(infos["size"].sum()) // self.plan.dtype.itemsize, self.plan.end, self.plan.dtype)
        at = 0
        for ids in tokens:
            flat[at : at + len(ids)] = ids
            at += len(ids) + 1
        return Documents(keys[which], infos, flat.tobytes())


def batches(
    source: int, files: Mapping[str, int], documents: Iterable[Document], languages: tuple[str, ...]
) -> Iterator[Batch]:
    """Documents of a source, in lists that are worth encoding together and bounded in memory.

    Args:
        files: the number of each file in the source, by its path.
    """
    codes = {language: code for code, language in enumerate(languages)}
    batch, characters = Batch(source, [], [], [], []), 0
    for document in documents:
        batch.files.append(files[document.source])
        batch.numbers.append(document.number)
        batch.languages.append(codes[document.language])
        batch.texts.append(document.text)
        characters += len(document.text)
        if len(batch.texts) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = Batch(source, [], [], [], []), 0
    if batch.texts:
        yield batch


@dataclass
class Account:
    """What the runs so far hold."""

    items: int
    """Batches."""
    counts: np.ndarray
    """int64 (3, sources, languages): documents, tokens, bytes of text to train on, each document once."""
    left_out: list[int]
    """Documents and bytes of text left out by a source's weight."""

    @classmethod
    def empty(cls, sources: int, languages: int) -> Account:
        """Of nothing."""
        return cls(0, np.zeros((3, sources, languages), np.int64), [0, 0])

    def add(self, encoded: Encoded, itemsize: int) -> None:
        """Count a batch."""
        self.items += 1
        self.counts += count(encoded.train.infos, self.counts.shape[1:], itemsize)
        self.left_out = [a + b for a, b in zip(self.left_out, encoded.left_out, strict=True)]

    def merge(self, other: Account) -> None:
        """Count what other runs hold."""
        self.items += other.items
        self.counts += other.counts
        self.left_out = [a + b for a, b in zip(self.left_out, other.left_out, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """For the disk."""
        return {"items": self.items, "counts": self.counts.tolist(), "left_out": self.left_out}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Account:
        """From the disk."""
        return cls(value["items"], np.array(value["counts"], np.int64), value["left_out"])


def count(infos: np.ndarray, shape: tuple[int, ...], itemsize: int) -> np.ndarray:
    """Documents, tokens and bytes of text, int64 (3, sources, languages), of some documents."""
    sources, languages = shape
    cells = infos["source"].astype(np.int64) * languages + infos["language"]
    weights = (None, infos["size"] // itemsize, infos["bytes"])  # sums below 2^53 are exact in bincount's doubles
    return np.stack([np.bincount(cells, w, sources * languages).astype(np.int64) for w in weights]).reshape(3, *shape)


def encode_runs(
    plan: Plan, sources: list[Source], directory: Path, run_bytes: int, processes: int, max_line_bytes: int
) -> tuple[Account, Tally]:
    """Encode all documents into runs in `directory`; see `write_runs`.

    Raises:
        UserError: sources that cannot be read, a full disk, a killed worker.
    """
    tally = Tally()

    def items() -> Iterator[Batch]:
        for number, source in enumerate(sources):
            files = {str(file.path): place for place, file in enumerate(document_files(source, Tally()))}
            yield from batches(number, files, read_documents([source], tally, max_line_bytes), plan.languages)

    with progress("shards", input_size(source.path for source in sources) or None, "bytes") as bar:
        make_work = partial(BatchEncoder, plan)
        return write_runs(
            plan, items(), tally, make_work, directory, run_bytes, processes, lambda: bar.reach(tally.input_bytes)
        )


def write_runs(
    plan: Plan,
    items: Iterable[Batch],
    reader: Tally,
    make_work: Callable[[], Callable[[Batch], Encoded]],
    directory: Path,
    run_bytes: int,
    processes: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Account, Tally]:
    """Encode batches into runs `train-*.run` and `held-*.run` in `directory`; what is whole there is kept.

    Args:
        items: all batches, the same ones at each start; those whose runs are whole are read and passed over.
        reader: the account of whoever reads them.

    Returns:
        The account of the runs, and the reader's.

    Raises:
        UserError: a full disk, a killed worker.
    """
    done = directory / ENCODED
    if done.is_file():
        return read_accounts(directory)
    directory.mkdir(parents=True, exist_ok=True)
    runs, account = _recover(directory, Account.empty(len(plan.weights), len(plan.languages)))
    train, held_out, before = RunWriter(run_bytes), RunWriter(run_bytes), account.items

    def write() -> None:
        nonlocal runs
        train.write(directory / f"train-{runs:05d}.run")
        held_out.write(directory / f"held-{runs:05d}.run")
        write_json(directory / f"account-{runs:05d}.json", account.to_json())
        runs += 1

    for encoded in ordered_map(make_work, itertools.islice(items, before, None), processes):
        account.add(encoded, plan.dtype.itemsize)
        train.add(encoded.train)
        held_out.add(encoded.held_out)
        advance()
        if train.pending_bytes + held_out.pending_bytes >= run_bytes:
            write()
    write()
    write_json(done, {"account": account.to_json(), "reader": reader.to_json()})
    return account, reader


def read_accounts(directory: Path) -> tuple[Account, Tally]:
    """The accounts of the finished runs in a directory, and of the reader."""
    saved = read_json(directory / ENCODED)
    return Account.from_json(saved["account"]), Tally.from_json(saved["reader"])


def _recover(directory: Path, empty: Account) -> tuple[int, Account]:
    """How many runs are whole, and their account; what else lies there is removed."""
    runs, account = 0, empty
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError):
        while (path := directory / f"account-{runs:05d}.json").is_file():
            account = Account.from_json(read_json(path))
            runs += 1
    whole = {f"{kind}-{number:05d}.run" for kind in ("train", "held") for number in range(runs)}
    whole |= {f"account-{number:05d}.json" for number in range(runs)}
    for path in directory.iterdir():
        if path.name not in whole:
            path.unlink()
    return runs, account
