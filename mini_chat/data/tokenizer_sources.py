"""The list of files that the shipped tokenizer is trained and measured on, and how text is taken out of them.

A list is a text file with a source a line: language, path (relative to the data folder), what to take.

    en       python-docs-zh-en/pairs.jsonl        en
    en       llama-factory/dpo_en_demo.json       value
    en       tatoeba-cmn-en/cmn.txt               column:1
    en       nltk-public-domain/genesis.zip       genesis/english-*.txt
    measure-en   wikitext-2/valid.txt

Of JSON, the strings under the named keys (parted by commas) are taken, however deep; of `.zip`, the members that the
pattern names, a document a line; of `.txt`, a document a line, or a column of tab-separated lines. A language
with `measure-` before it is never trained on.
"""

from __future__ import annotations

import fnmatch
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_chat.data.documents import read_documents
from mini_chat.data.records import read_records
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError

MEASURE = "measure-"


@dataclass(frozen=True)
class TokenizerSource:
    """One line of a list. It is also a `DocumentSource`."""

    language: str
    """`en` or `zh`."""
    name: str
    """The path as the list has it."""
    path: str
    """The path that is opened."""
    take: str = ""
    trained: bool = True
    """Whether merges may be learnt from it; its held-out share is measured either way."""
    format: str = "auto"
    field: str = "text"


def read_source_list(path: Path | str, data: Path | str) -> list[TokenizerSource]:
    """The sources that a list names, in its order.

    Raises:
        UserError: the list cannot be read, or a line of it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the list of sources ({error}); check the path") from None
    sources = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        language = words[0].removeprefix(MEASURE)
        if len(words) not in (2, 3) or language not in ("en", "zh"):
            raise UserError(f"{path}:{number}: not 'LANGUAGE PATH [WHAT]', language en, zh, measure-en or measure-zh")
        take = words[2] if len(words) == 3 else ""
        kind = "lines" if words[1].endswith(".txt") else "auto"
        sources.append(TokenizerSource(language, words[1], str(Path(data, words[1])), take, words[0] == language, kind))
    if not sources:
        raise UserError(f"{path}: the list names no source; add a line such as 'en folder/file.txt'")
    return sources


def read_texts(source: TokenizerSource) -> Iterator[str]:
    """The documents of a source, in order; what cannot be read as text is passed over as the readers do.

    Raises:
        UserError: the file is missing or unreadable.
    """
    suffix = Path(source.path).suffix
    if suffix == ".zip":
        yield from _zip_members(source)
    elif suffix == ".txt":
        column = int(source.take.removeprefix("column:")) - 1 if source.take else None
        for document in read_documents([source], Tally()):
            yield document.text if column is None else document.text.split("\t")[column]
    else:
        tally = Tally()
        for record in read_records([source], tally):
            tally.keep(0)
            yield from _strings_under(record.value, source.take.split(","))


def _strings_under(value: Any, keys: list[str]) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in keys and isinstance(item, str):
                yield item
            else:
                yield from _strings_under(item, keys)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_under(item, keys)


def _zip_members(source: TokenizerSource) -> Iterator[str]:
    try:
        with zipfile.ZipFile(source.path) as archive:
            for name in sorted(fnmatch.filter(archive.namelist(), source.take or "*.txt")):
                data = archive.read(name)
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError:
                    text = data.decode("cp1252", errors="replace")
                yield from (line for line in text.splitlines() if line.strip())
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{source.path}: cannot read the archive ({error}); fetch it again") from None
