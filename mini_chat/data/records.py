"""From the bytes of a file to text and JSON objects, one unit at a time, with the place each came from.

What cannot be one is set aside here (`tally.read` and `tally.drop`); what is yielded is counted as read, and whoever
takes it keeps or drops it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mini_chat.data.inputs import InputFile, Source, find_files, read_sources
from mini_chat.data.parquet import read_rows
from mini_chat.data.streams import MAX_LINE_BYTES, counting_damage, read_lines, read_start, read_whole
from mini_chat.data.tally import (
    CONTROL_CHARACTER,
    EMPTY,
    INVALID_UTF8,
    LONE_SURROGATE,
    NOT_JSON,
    NOT_OBJECT,
    NUL_BYTE,
    TOO_LONG,
    SetAside,
    Tally,
)
from mini_chat.errors import UserError

MAX_ARRAY_BYTES = 100_000_000
MAX_YAML_BYTES = 10_000_000
RECORD_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".parquet": "parquet",
}

# C0 and C1 controls but tab, line ends, vertical tab, form feed and NEL, which are white space in real text.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# A raw tab or line end inside a JSON string is forgiven; other control characters are found by `check_text`.
_DECODER = json.JSONDecoder(strict=False)


class Record(NamedTuple):
    """One JSON object: its source, its file and its line, row or item (from 1)."""

    value: dict[str, Any]
    source: Any
    path: Path
    number: int

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


# ---------------------------------------------------------------------------------------------------------------------
# One unit


def check_text(text: str) -> int:
    """The size of `text` in UTF-8 bytes.

    Raises:
        SetAside: a NUL, another control character, or half of a surrogate pair (a JSON escape can carry one).
    """
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise SetAside(LONE_SURROGATE, f"U+{ord(text[error.start]):04X}") from None
    if found := _CONTROL.search(text):
        if "\x00" in text:
            raise SetAside(NUL_BYTE)
        raise SetAside(CONTROL_CHARACTER, f"U+{ord(found.group()):04X}")
    return size_bytes


def decode(data: bytes) -> str:
    """The text of `data`.

    Raises:
        SetAside: a NUL byte, or not UTF-8.
    """
    if b"\x00" in data:
        raise SetAside(NUL_BYTE)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SetAside(INVALID_UTF8, f"byte {error.start} of the unit") from None


def parse_object(line: bytes | None) -> dict[str, Any]:
    """The JSON object on one line; None stands for a line over the limit.

    Raises:
        SetAside: it is none.
    """
    if line is None:
        raise SetAside(TOO_LONG)
    text = decode(line)
    if not text.strip():
        raise SetAside(EMPTY)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise SetAside(NOT_JSON, f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested by the thousand
        raise SetAside(NOT_JSON, type(error).__name__) from None
    return as_object(value)


def as_object(value: Any) -> dict[str, Any]:
    """`value` itself, if it is a JSON object.

    Raises:
        SetAside: it is none.
    """
    if not isinstance(value, dict):
        raise SetAside(NOT_OBJECT, f"it is a {type(value).__name__}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Records of files


def read_records(sources: Iterable[Source], tally: Tally, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Record]:
    """The JSON objects of `.jsonl`, `.json` (an array, under 100 MB), `.yml` and `.parquet` files.

    A source's `format` may say `jsonl`, `json`, `yaml` or `parquet` for files with other suffixes.

    Raises:
        UserError: a path or file that cannot be read, as `inputs.find_files` and `inputs.read_sources` say;
            an array or YAML file that does not parse.
    """

    def files_of(source: Source) -> list[InputFile]:
        stated = getattr(source, "format", "auto")
        known = ("auto", "jsonl", "json", "yaml", "parquet")
        if stated not in known:
            raise UserError(f"{source.path}: records have no format '{stated}'; state one of {', '.join(known)}")
        return find_files(source.path, RECORD_FORMATS, None if stated == "auto" else stated, tally)

    def read_file(source: Source, file: InputFile) -> Iterator[Record]:
        kind = file.format
        if kind == "json" and not _is_array(file.path):
            kind = "jsonl"
        units: Iterator[tuple[int, Any]]
        if kind == "jsonl":
            units = read_lines(file.path, tally, max_line_bytes)
        elif kind == "parquet":
            units = enumerate(read_rows(file.path, tally), 1)
        else:
            units = enumerate(_array(file.path) if kind == "json" else _yaml_items(file.path), 1)
        with counting_damage(file.path, tally):
            for number, unit in units:
                tally.read += 1
                try:
                    if kind == "parquet" and unit is None:
                        raise SetAside(INVALID_UTF8)
                    value = parse_object(unit) if kind == "jsonl" else as_object(unit)
                except SetAside as why:
                    tally.drop(why.reason, f"{file.path}:{number}", why.detail)
                else:
                    yield Record(value, source, file.path, number)

    return read_sources(sources, files_of, read_file, tally)


def _is_array(path: Path) -> bool:
    """Whether a `.json` file holds an array; one object a line under that name is common too.

    Raises:
        UserError: it begins as neither.
    """
    start = read_start(path).lstrip()
    if start.startswith(b"["):
        return True
    line, end, _ = start.partition(b"\n")
    try:
        if end:
            parse_object(line)
    except SetAside:
        raise UserError(f"{path}: neither an array of objects nor one object a line; write it as .jsonl") from None
    return False


def _array(path: Path) -> list[Any]:
    data = read_whole(path, MAX_ARRAY_BYTES)
    try:
        value = _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise UserError(
            f"{place}: not valid JSON ({error.msg}); mend it, or write one object a line as .jsonl"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({type(error).__name__}); write one object a line as .jsonl") from None
    return list(value)


def _yaml_items(path: Path) -> list[Any]:
    """The items of a YAML list, or of `conversations:` (ChatterBot's form: lists of turns, user first)."""
    data = read_whole(path, MAX_YAML_BYTES)
    try:
        # The base loader makes nothing but strings, lists and mappings: an answer `yes` or `1963` stays text.
        value = yaml.load(data, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not valid YAML ({problem or 'bad characters'}); mend it") from None
    if isinstance(value, dict) and isinstance(value.get("conversations"), list):
        value = value["conversations"]
    if not isinstance(value, list):
        raise UserError(f"{path}: no list of dialogues in it; write `conversations:` with one list of turns a dialogue")
    return [{"conversations": item} if isinstance(item, list) else item for item in value]
