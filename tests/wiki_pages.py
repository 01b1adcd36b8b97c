"""Dumps for tests: pages of made-up articles, in the forms in which dumps come."""

from __future__ import annotations

import bz2
import random
from html import escape
from pathlib import Path

HEADER = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">\n'
    "  <siteinfo>\n    <sitename>Wikipedia</sitename>\n    <dbname>{language}wiki</dbname>\n  </siteinfo>\n"
)
FOOTER = "</mediawiki>\n"


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    """A page as MediaWiki exports it."""
    mark = f'    <redirect title="{redirect}" />\n' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>1</id>\n{mark}"
        "    <revision>\n"
        f"      <comment>a comment on {escape('<text>')}</comment>\n"
        f'      <text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>\n'
        "      <sha1>x</sha1>\n    </revision>\n  </page>\n"
    )


def article(number: int, sentences: int = 12) -> str:
    """An article's wikitext, another one for each number."""
    words = random.Random(number)
    lines = [f"'''Article {number}''' is about [[thing {number}|a thing]]<ref>{{{{cite|{number}}}}}</ref> ({{{{x}}}})."]
    for _ in range(sentences):
        lines.append(
            " ".join(words.choices(("river", "[[hill]]s", "''old''", "town & fort", "<b>was</b>", "7"), k=12)) + "."
        )
    return "{{Infobox\n| a = b\n}}\n" + "\n\n".join(lines) + "\n\n[[Category:Things]]"


def pages(count: int, begin: int = 0) -> list[str]:
    """Articles."""
    return [page(f"Article {number}", article(number)) for number in range(begin, begin + count)]


def dump(written: list[str], language: str = "en") -> bytes:
    """A whole dump in XML."""
    return (HEADER.format(language=language) + "".join(written) + FOOTER).encode()


def multistream(written: list[str], each: int, language: str = "en") -> bytes:
    """A dump of many bzip2 streams, so many pages in each."""
    streams = [HEADER.format(language=language)]
    streams += ["".join(written[begin : begin + each]) for begin in range(0, len(written), each)]
    return b"".join(bz2.compress(stream.encode()) for stream in [*streams, FOOTER])


def write(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
