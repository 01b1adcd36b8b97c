"""The two passes over the documents of a source, as work for processes.

The first mends and judges; what survives goes to temporary parts, whose lines are the JSON of a document, a tab, and
the place it came from and its size; the documents' keys and a few samples lie beside each part. The second copies the
lines that are no duplicates, without their places: it parses none of them, so it runs at the rate of the compression.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring as as_json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from mini_chat.config import Clean
from mini_chat.data.cleaning.cleaner import EXACT_KEYS, Cleaned, Cleaner
from mini_chat.data.cleaning.duplicates import read_bits
from mini_chat.data.cleaning.lines import line_keys
from mini_chat.data.cleaning.samples import Collector, changed, dropped, first_of_each
from mini_chat.data.cleaning.tokens import U64
from mini_chat.data.documents import Document
from mini_chat.data.parts import Output, Parts, side_name
from mini_chat.data.tally import Tally
from mini_chat.parallel import in_batches

KEYS, SAMPLE_LINES, LINE_KEYS = "keys", "samples", "lines"
"""Files beside the temporary parts."""

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near duplicate"
GROUP_CHARACTERS = 200_000  # cleaned at once: the arrays about them are some 20 MB

Bools = npt.NDArray[np.bool_]


def key_columns(settings: Clean) -> int:
    """Keys of a document."""
    return {"off": 0, "exact": EXACT_KEYS, "near": EXACT_KEYS + settings.bands}[settings.dedup]


class FirstPass:
    """In a worker: documents → what survives of them, their keys, and samples."""

    def __init__(self, settings: Clean, boilerplate: Path | None) -> None:
        everywhere = frozenset(np.fromfile(boilerplate, np.uint64).tolist()) if boilerplate else frozenset[int]()
        self.cleaner = Cleaner(settings, everywhere)

    def __call__(self, documents: list[Document]) -> Output:
        tally, collector = Tally(), Collector()
        lines: list[str] = []
        samples: list[bytes] = []
        keys: list[bytes] = []
        for group in in_batches(documents, lambda document: len(document.text), GROUP_CHARACTERS):
            cleaned, keys_DK = self.cleaner([document.text for document in group], [one.language for one in group])
            keys.append(keys_DK.tobytes())
            for document, outcome in zip(group, cleaned, strict=True):
                size = _size(document.text)
                where = f"{document.source}:{document.number}"
                samples += _samples_of(document.text, outcome, where, collector)
                if outcome.reason is not None:
                    tally.take_back(outcome.reason, where, size)
                    continue
                new_size = _size(outcome.text)
                tally.bytes += new_size - size
                for change in outcome.changes:
                    tally.repaired[change] += 1
                lines.append(f'{{"text": {as_json(outcome.text)}}}\t[{as_json(where)}, {new_size}]\n')
        return Output("".join(lines).encode(), tally, {KEYS: b"".join(keys), SAMPLE_LINES: b"".join(samples)})


def _samples_of(text: str, outcome: Cleaned, where: str, collector: Collector) -> Iterator[bytes]:
    """Lines of the samples that a document is for what is still wanted."""
    if outcome.reason is not None:
        if collector.wants("dropped", outcome.reason):
            yield dropped(outcome.reason, where, text).line()
        return
    for change, texts in outcome.changes.items():
        if collector.wants("changed", change):
            yield changed(change, where, *texts).line()


class LinePass:
    """In a worker: documents → the keys of their lines, for counting which are boilerplate."""

    def __call__(self, documents: list[Document]) -> Output:
        found = [np.fromiter(line_keys(document.text), np.uint64) for document in documents]
        return Output(b"", Tally(), {LINE_KEYS: np.concatenate(found).tobytes()})


class SurvivorParts(Parts):
    """Temporary parts, each with a few samples of each reason only."""

    def __init__(self, directory: Path, identity: dict[str, Any], part_bytes: int) -> None:
        self._collector = Collector()
        super().__init__(directory, identity, part_bytes)

    def add(self, output: Output) -> None:
        sides = dict(output.sides)
        if SAMPLE_LINES in sides:
            sides[SAMPLE_LINES] = b"".join(first_of_each(sides[SAMPLE_LINES].splitlines(True), self._collector))
        super().add(output._replace(sides=sides))

    def _flush(self) -> None:
        super()._flush()
        self._collector = Collector()  # of each part, so that a part does not depend on what was before it

    def side_files(self, side: str) -> list[Path]:
        """The files of one kind beside the parts, in order."""
        return [self.directory / side_name(part, side) for part in self.parts if side in part.get("sides", {})]

    def samples(self) -> Iterator[bytes]:
        """Lines of the first few samples of each reason."""
        files = self.side_files(SAMPLE_LINES)
        return first_of_each(line for file in files for line in file.read_bytes().splitlines(keepends=True))

    def rows(self, keys: int) -> Iterator[U64]:
        """The documents' keys, part by part."""
        for file in self.side_files(KEYS):
            yield np.fromfile(file, np.uint64).reshape(-1, keys)

    def document(self, number: int) -> tuple[str, str]:
        """Text and place of a document by its number."""
        for part in self.parts:
            if number < part["documents"]:
                line = _lines_of(self.directory / part["name"])[number]
                text, place = line.split(b"\t")
                return json.loads(text)["text"], json.loads(place)[0]
            number -= part["documents"]
        raise AssertionError(f"there is no document {number}")


class Portion(NamedTuple):
    """A temporary part, and which of its documents came before."""

    part: Path
    duplicate: Bools
    near: Bools


PORTIONS = 16
"""Temporary parts of a stretch of the second pass."""


@dataclass
class Portions:
    """The temporary parts of a source, to be gone through without the documents that came before."""

    parts: SurvivorParts | None
    bits: dict[str, Path]
    """Files of a bit for each document of all sources, set if it is a `DUPLICATE`, a `NEAR_DUPLICATE`; or none."""
    start: int
    """Number of the source's first document among them."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"parts": None}  # a machine needs to know of its own stretches only

    def stretches(self, tally: Tally) -> list[list[Any]]:
        """Parts, with the numbers that their documents begin and end with."""
        assert self.parts is not None
        places, place = [], self.start
        for part in self.parts.parts:
            places.append([str(self.parts.directory / part["name"]), place, place + part["documents"]])
            place += part["documents"]
        return [places[at : at + PORTIONS] for at in range(0, len(places), PORTIONS)]

    def items(self, stretch: list[Any], tally: Tally) -> Iterator[Portion]:
        """Parts, and which of their documents came before."""
        for part, start, end in stretch:
            none = np.zeros(end - start, bool)
            found = [
                read_bits(self.bits[kind], start, end) if self.bits else none for kind in (DUPLICATE, NEAR_DUPLICATE)
            ]
            yield Portion(Path(part), *found)
            tally.input_bytes += Path(part).stat().st_size


class SecondPass:
    """A temporary part → its documents that are no duplicates."""

    def __call__(self, portion: Portion) -> Output:
        data = np.frombuffer(_decompressed(portion.part), np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        tabs = np.flatnonzero(data == ord("\t"))  # one a line: JSON spells those of the text
        tally = Tally()
        for reason, which in ((DUPLICATE, portion.duplicate), (NEAR_DUPLICATE, portion.near & ~portion.duplicate)):
            for number in np.flatnonzero(which).tolist():
                where, size = json.loads(data[tabs[number] + 1 : ends[number]].tobytes())
                tally.take_back(reason, where, size)
        kept = ~(portion.duplicate | portion.near)
        begins = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
        stretches = np.stack((tabs - begins, ends - tabs, np.ones_like(ends)), axis=1)  # document, place, line end
        copied = np.stack((kept, np.zeros_like(kept), kept), axis=1)
        return Output(data[np.repeat(copied.ravel(), stretches.ravel())].tobytes(), tally)


def _size(text: str) -> int:
    """Its UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode())


@functools.lru_cache(1)
def _lines_of(part: Path) -> list[bytes]:
    return _decompressed(part).splitlines()


def _decompressed(part: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompress(part.read_bytes())
