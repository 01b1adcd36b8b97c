"""From the XML of pages to their titles and wikitext."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.parsers import expat

from mini_chat.data.tally import INVALID_UTF8, SetAside

NOT_XML = "not well-formed XML"

BUFFER_BYTES = 1 << 16
_TAG = re.compile(rb"<(/?)page>")
_NUMBER = re.compile(r"-?\d{1,6}")


class Page(NamedTuple):
    """One page of a dump."""

    title: str
    namespace: int
    """0: an article; old dumps do not say, which counts as 0."""
    is_redirect: bool
    text: str
    """Wikitext of its last revision; empty where there is none to see."""


def split_pages(data: bytes) -> Iterator[bytes]:
    """Each `<page>…</page>` in XML that ends with one."""
    begin = -1
    for tag in _TAG.finditer(data):
        if not tag[1]:
            begin = tag.start()  # the last one: a page whose end is missing does not take the next along
        elif begin >= 0:
            yield data[begin : tag.end()]
            begin = -1


def parse_page(data: bytes) -> Page:
    """The page in a `<page>…</page>`.

    Raises:
        SetAside: this is not UTF-8, or not XML.
    """
    found: dict[str, list[str]] = {"title": [], "ns": [], "text": []}
    is_redirect = False
    current: list[str] | None = None

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal is_redirect, current
        is_redirect = is_redirect or name == "redirect"
        current = found.get(name)
        if current is not None:
            current.clear()  # of several revisions the last one counts

    def end(name: str) -> None:
        nonlocal current
        current = None

    def characters(text: str) -> None:
        if current is not None:
            current.append(text)

    parser = expat.ParserCreate()
    parser.buffer_text = True  # one call for a text, not one for each line and entity in it
    parser.buffer_size = BUFFER_BYTES
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        try:
            data.decode()
        except UnicodeDecodeError as problem:
            raise SetAside(INVALID_UTF8, f"byte {problem.start}") from error
        raise SetAside(NOT_XML, f"line {error.lineno}: {expat.ErrorString(error.code)}") from error
    namespace = "".join(found["ns"]).strip()
    number = int(namespace) if _NUMBER.fullmatch(namespace) else 0
    return Page("".join(found["title"]), number, is_redirect, "".join(found["text"]))
