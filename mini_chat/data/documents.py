"""Documents: the plain text that pretraining and the tokenizer read, streamed from whatever the user has.

| format | files | one document is |
|---|---|---|
| `lines` | `.txt` | a line |
| `paragraphs` | `.txt` | lines between blank lines |
| `jsonl` | `.jsonl`, `.ndjson` | the string in `field` of the object on a line |
| `parquet` | `.parquet` | the string in column `field` of a row |

`.txt` and `.jsonl` may be compressed (`.gz`, `.bz2`, `.zst`). `auto` goes by the suffix, and takes a `.txt` for
paragraphs if its first 64 KiB hold a blank line between others, else for lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mini_chat.data.inputs import InputFile, find_files, read_files, read_sources
from mini_chat.data.language import guess_language
from mini_chat.data.parquet import read_column
from mini_chat.data.records import check_text, decode, parse_object
from mini_chat.data.streams import MAX_LINE_BYTES, counting_damage, read_lines, read_start
from mini_chat.data.tally import EMPTY, FIELD_MISSING, FIELD_NOT_STRING, TOO_LONG, SetAside, Tally
from mini_chat.errors import UserError

TEXT_FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
STATED_FORMATS = {"auto": None, "lines": "text", "paragraphs": "text", "jsonl": "jsonl", "parquet": "parquet"}
IDEOGRAPHIC_SPACE = "\u3000".encode()


class DocumentSource(Protocol):
    """Where documents come from (the recipe's model has these and a weight, which is the mixer's affair)."""

    @property
    def path(self) -> str:
        """A file, a folder or a glob pattern."""

    @property
    def language(self) -> str:
        """`en`, `zh`, …; `auto`: guessed from each text."""

    @property
    def format(self) -> str:
        """`auto`, `lines`, `paragraphs`, `jsonl` or `parquet`."""

    @property
    def field(self) -> str:
        """The name of the text in a JSON object or a parquet row."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it stands: file, and line (of a paragraph: its first) or row, from 1."""

    text: str
    language: str
    source: str
    number: int


def read_documents(
    sources: Iterable[DocumentSource], tally: Tally, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document]:
    """Every usable document of `sources`, in order; what is not usable is set aside and counted in `tally`.

    Memory is bounded by `max_line_bytes` (of a line, a paragraph, a JSON line or a parquet value), not by the input.
    Line ends inside a paragraph become `\\n`; nothing else is changed.

    Raises:
        UserError: a path that is missing, empty or unreadable, a source with nothing usable in it, a file that is not
            what its suffix says, a parquet file without the column, a package that is not installed.
    """

    def files_of(source: DocumentSource) -> list[InputFile]:
        return document_files(source, tally)

    def read_file(source: DocumentSource, file: InputFile) -> Iterator[Document]:
        return _documents(source, file, tally, max_line_bytes)

    return read_sources(sources, files_of, read_file, tally)


def document_files(source: DocumentSource, tally: Tally) -> list[InputFile]:
    """The files that a source's documents are in, in order; `tally` counts those that are skipped.

    Raises:
        UserError: there is none, or it cannot be told how to read it.
    """
    if source.format not in STATED_FORMATS:
        known = ", ".join(STATED_FORMATS)
        raise UserError(f"{source.path}: documents have no format '{source.format}'; state one of {known}")
    return find_files(source.path, TEXT_FORMATS, STATED_FORMATS[source.format], tally)


def read_document_files(
    source: DocumentSource, files: Iterable[InputFile], tally: Tally, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document]:
    """The documents in some of a source's files, of which it may have none; see `read_documents`."""
    return read_files(files, lambda file: _documents(source, file, tally, max_line_bytes), tally)


def _documents(source: DocumentSource, file: InputFile, tally: Tally, max_line_bytes: int) -> Iterator[Document]:
    if file.format == "parquet":
        units: Iterator[tuple[int, bytes | None]] = enumerate(read_column(file.path, source.field, tally), 1)
    elif file.format == "text" and _has_paragraphs(source, file.path):
        units = _paragraphs(read_lines(file.path, tally, max_line_bytes), max_line_bytes)
    else:
        units = read_lines(file.path, tally, max_line_bytes)
    with counting_damage(file.path, tally):
        for number, unit in units:
            tally.read += 1
            try:
                text = _text(unit, file.format, source.field, max_line_bytes)
                size_bytes = check_text(text)
            except SetAside as why:
                tally.drop(why.reason, f"{file.path}:{number}", why.detail)
            else:
                tally.keep(size_bytes)
                language = guess_language(text) if source.language == "auto" else source.language
                yield Document(text, language, str(file.path), number)


def _text(unit: bytes | None, kind: str, field: str, max_line_bytes: int) -> str:
    """The document in a line, paragraph, JSON line or parquet value.

    Raises:
        SetAside: there is none.
    """
    if kind == "jsonl":
        value = parse_object(unit)
        if value.get(field) is None:
            raise SetAside(FIELD_MISSING, f"no '{field}' among {', '.join(list(value)[:8]) or 'none'}"[:120])
        text = value[field]
        if not isinstance(text, str):
            raise SetAside(FIELD_NOT_STRING, f"'{field}' is a {type(text).__name__}")
    else:
        if unit is None and kind == "parquet":
            raise SetAside(FIELD_MISSING, f"'{field}' is null")
        if unit is None or len(unit) > max_line_bytes:
            raise SetAside(TOO_LONG)
        text = decode(unit)
    if not text.strip():
        raise SetAside(EMPTY)
    return text


def _has_paragraphs(source: DocumentSource, path: Path) -> bool:
    if source.format != "auto":
        return source.format == "paragraphs"
    return any(_is_blank(line) for line in read_start(path).strip().split(b"\n"))


def _is_blank(line: bytes) -> bool:
    return not line.strip() or not line.replace(IDEOGRAPHIC_SPACE, b"").strip()


def _paragraphs(lines: Iterator[tuple[int, bytes | None]], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines joined up to the next blank one, with the number of the first; None if they exceed `max_bytes`."""
    first, too_long, text = 0, False, bytearray()
    for number, line in lines:
        if line is not None and _is_blank(line):
            if first:
                yield first, None if too_long else bytes(text)
            first, too_long = 0, False
            text.clear()
            continue
        if first:
            text += b"\n"
        first = first or number
        text += line or b""
        too_long = too_long or line is None or len(text) > max_bytes
        if too_long:
            text.clear()
    if first:
        yield first, None if too_long else bytes(text)
