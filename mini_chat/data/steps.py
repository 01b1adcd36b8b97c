"""Running a corpus step: every source through a transformation, in parts, on as many processes as there are.

A step turns sources into sources: each source's documents go to a directory of their own under the step's, named after
it, so that a source that changes is made again and its neighbours are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from mini_chat.config import Machine, Source
from mini_chat.console import progress, say
from mini_chat.data.documents import Document, document_files, read_document_files
from mini_chat.data.inputs import InputFile, about, nothing_usable, stretches
from mini_chat.data.parts import MANIFEST, PATTERN, Output, Parts, work_through
from mini_chat.data.tally import SetAside, Tally
from mini_chat.errors import UserError
from mini_chat.files import sha256_json

BATCH_DOCUMENTS = 512  # worked on at once
BATCH_CHARACTERS = 1_000_000  # but no more text than this, or one document
PART_BYTES = 64_000_000

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Kept(NamedTuple):
    """A document that a transformation hands on."""

    text: str
    changes: tuple[str, ...] = ()
    """What was changed in it, for the account: `Tally.repaired`."""


Transform = Callable[[Sequence[Document]], list[Kept | SetAside]]
"""What a step makes of each of some documents."""


def batches(
    documents: Iterator[Document], most_documents: int = BATCH_DOCUMENTS, most_characters: int = BATCH_CHARACTERS
) -> Iterator[list[Document]]:
    """The documents in lists that are worth working on together and bounded in memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == most_documents or characters >= most_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Input(Protocol[Item_co]):
    """What a step works through, in stretches that machines can share out; picklable."""

    def stretches(self, tally: Tally) -> list[list[Any]]:
        """What stands in each stretch, as JSON; `tally` counts what is passed over."""

    def items(self, stretch: list[Any], tally: Tally) -> Iterator[Item_co]:
        """The items of a stretch, a function of it alone; `tally` is the reader's account."""


@dataclass(frozen=True)
class DocumentBatches:
    """A source's documents in batches, its files in stretches (`inputs.stretches`)."""

    source: Source
    max_line_bytes: int
    stretch_bytes: int | None = None

    def stretches(self, tally: Tally) -> list[list[Any]]:
        """Files and their formats."""
        found = stretches(document_files(self.source, tally), self.stretch_bytes)
        return [[[str(file.path), file.format] for file in stretch] for stretch in found]

    def items(self, stretch: list[Any], tally: Tally) -> Iterator[list[Document]]:
        """The batches of the documents in some files."""
        files = [InputFile(Path(path), kind) for path, kind in stretch]
        return batches(read_document_files(self.source, files, tally, self.max_line_bytes))


def fill(
    name: str,
    parts: Parts,
    work_input: Input[Item],
    make_work: Callable[[], Callable[[Item], Output]],
    machine: Machine,
) -> Tally:
    """Work through an input, on this machine or (`machine.engine`) on many, into `parts`, behind what is there.

    Args:
        name: shown beside the bar.
        make_work: see `parallel.ordered_map`.

    Returns:
        The reader's account.

    Raises:
        UserError: input that cannot be read, a full disk, a killed worker, an engine that is not installed.
    """
    tally = Tally()
    found = work_input.stretches(tally)
    if machine.engine != "none":
        from mini_chat.data.engines.stretches import fill_by_engine

        fill_by_engine(name, parts, work_input, found, make_work, machine, tally)
        return tally

    def items() -> Iterator[Item | None]:
        for stretch in found:
            yield from work_input.items(stretch, tally)
            yield None

    with progress(name, _size_on_disk(found) or None, "bytes") as bar:
        work_through(parts, items(), make_work, machine.processes, lambda: bar.reach(tally.input_bytes))
    return tally


def _size_on_disk(found: list[list[Any]]) -> int:
    """Bytes of the files of all stretches, whose entries begin with their paths."""
    return sum(Path(entry[0]).stat().st_size for stretch in found for entry in stretch)


def run_step(
    name: str,
    sources: list[Source],
    directory: Path,
    settings: dict[str, Any],
    make_transform: Callable[[], Transform],
    machine: Machine,
    max_line_bytes: int,
    part_bytes: int = PART_BYTES,
    stretch_bytes: int | None = None,
) -> list[Source]:
    """Transform the documents of every source into parts under `directory`; returns the sources that these are.

    Args:
        settings: everything that the transformation depends on; another value, and the step is made again.
        make_transform: picklable, see `parallel.ordered_map`.

    Raises:
        UserError: sources that cannot be read, a full disk, a killed worker.
    """
    results = []
    for source, folder in zip(sources, folders(sources), strict=True):
        parts = Parts(directory / folder, {"settings": settings, **about(source)}, part_bytes)
        if parts.manifest is None:
            work_input = DocumentBatches(source, max_line_bytes, stretch_bytes)
            tally = fill(name, parts, work_input, partial(_Worker, make_transform), machine)
            if not tally.written:
                raise nothing_usable(source.path, tally)
            parts.close(tally)
            for line in Tally.from_json(parts.manifest["accounting"]).lines():  # type: ignore[index]
                say(f"  {name} {folder}: {line.strip()}")
        else:
            say(f"  {name} {folder}: finished")
        results.append(parts_source(source, directory / folder))
    return results


def finished_sources(
    step: str, sources: list[Source], directory: Path, concerned: Callable[[Source], bool]
) -> list[Source]:
    """The sources that a finished step left in place of those it was concerned with; the others as they are.

    Raises:
        UserError: the step is not finished.
    """
    affected = [source for source in sources if concerned(source)]
    made = dict(zip(map(id, affected), folders(affected), strict=True))
    for source in affected:
        if not (directory / made[id(source)] / MANIFEST).is_file():
            raise UserError(f"{source.path}: {step} is not finished with it; run `mini-chat {step} RECIPE` first")
    return [parts_source(source, directory / made[id(source)]) if id(source) in made else source for source in sources]


def parts_source(source: Source, directory: Path) -> Source:
    """The source that a directory of parts is, with the language and weight of the one it was made of."""
    return source.model_copy(update={"path": str(directory / PATTERN), "format": "jsonl", "field": "text"})


def folders(sources: list[Source]) -> list[str]:
    """A directory name for each source: its file's name and a few letters of a hash of what it reads."""
    names: list[str] = []
    for source in sources:
        key = sha256_json([source.path, source.field, source.format, source.language])[:8]
        parts = [part for part in Path(source.path).parts if "*" not in part]
        stem = re.sub(r"[^\w.-]+", "-", (parts or ["source"])[-1]).strip("-.") or "source"
        name = f"{stem}-{key}"
        names.append(name if name not in names else f"{name}-{names.count(name) + 1}")
    return names


def json_line(text: str, **fields: str) -> bytes:
    """A document as a line of a part."""
    return json.dumps({"text": text, **fields}, ensure_ascii=False).encode() + b"\n"


class _Worker:
    """In a worker: a batch of documents → JSON lines and their account, laid over the reader's."""

    def __init__(self, make_transform: Callable[[], Transform]) -> None:
        self.transform = make_transform()

    def __call__(self, documents: list[Document]) -> Output:
        tally, lines = Tally(), []
        for document, outcome in zip(documents, self.transform(documents), strict=True):
            size = len(document.text.encode())
            if isinstance(outcome, SetAside):
                tally.take_back(outcome.reason, f"{document.source}:{document.number}", size)
                continue
            tally.bytes += len(outcome.text.encode()) - size
            tally.repaired.update(outcome.changes)
            lines.append(json_line(outcome.text))
        return Output(b"".join(lines), tally)
