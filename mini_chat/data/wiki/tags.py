"""Comments, and tags of HTML and of MediaWiki's extensions.

| what | what becomes of it |
|---|---|
| comments, references, galleries, scores, maps, forms, tables in HTML | go, with what they hold |
| `<math>`, `<chem>` | stay as their TeX source between `$`: a formula is part of its sentence |
| `<pre>`, `<source>`, `<syntaxhighlight>` | stay as they are: code, in which nothing is markup |
| `<nowiki>` | the text inside, in which nothing is markup |
| `<br>` | a line end |
| `<sup>2</sup>` | digits become superscript: 10⁶ and not 106; other text stays |
| all other known tags | go, and what they hold stays |
"""

from __future__ import annotations

import re
from html import unescape

GONE = (
    "ref", "references", "gallery", "timeline", "score", "imagemap", "graph", "mapframe", "maplink", "templatedata",
    "templatestyles", "inputbox", "categorytree", "hiero", "indicator", "section", "dynamicpagelist", "rss",
)  # fmt: skip
"""Elements that go with what they hold."""
VERBATIM = (
    "nowiki", "math", "chem", "ce", "pre", "source", "syntaxhighlight",
)  # fmt: skip
"""Elements in which nothing is markup."""
STRIPPED = (
    "a", "abbr", "b", "bdi", "bdo", "big", "blockquote", "caption", "center", "cite", "code", "data", "dd", "del",
    "dfn", "div", "dl", "dt", "em", "embed", "font", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "includeonly",
    "ins", "kbd", "li", "mark", "nobr", "noinclude", "nowiki", "ol", "onlyinclude", "p", "poem", "pre", "q", "rb",
    "rp", "rt", "rtc", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "table", "tbody", "td",
    "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr", "ref", "references", "gallery", "math",
    "chem", "ce", "source", "syntaxhighlight", "timeline", "imagemap", "section", "noindex", "langconvert",
)  # fmt: skip
BREAK = "\v"
"""Stands for `<br>` until lines are joined; no text begins with one in it."""
MARK = "\x7f"
"""Stands around the number of a verbatim text until all else is done."""


def _elements(names: tuple[str, ...]) -> re.Pattern[str]:
    """Elements of these names, empty or up to the next end tag; one that another of its name follows is not closed.

    Every step is possessive, so that a search costs no more than the text up to the next tag of the name.
    """
    listed = "|".join(names)
    return re.compile(
        rf"<({listed})\b(?:[^<>/]++|/(?!>))*+(?:/>|>([^<]*+(?:<(?!/?\1\b)[^<]*+)*+)</\1\s*+>)", re.IGNORECASE
    )


_GONE, _VERBATIM = _elements(GONE), _elements(VERBATIM)
_REF = re.compile(
    r"<(?:ref\b(?:[^<>/]++|/(?!>))*+(?:/>|>[^<]*+(?:<(?!/?ref\b)[^<]*+)*+</ref\s*+>)"
    r"|!--(?:[^-]++|-(?!->))*+(?:-->|\Z))",
    re.IGNORECASE,
)
_BREAK = re.compile(r"</?+br\b[^<>]*+>(?:[ \t]*+</?+br\b[^<>]*+>)*+", re.IGNORECASE)
_STRIPPED = re.compile(rf"</?(?:{'|'.join(STRIPPED)})\b[^<>]*+>", re.IGNORECASE)
_POWER = re.compile(r"<sup\b[^<>]*+>([-+−–]?\d{1,4})</sup\s*>", re.IGNORECASE)
_TABLE = re.compile(r"<(/?)table\b[^<>]*+>", re.IGNORECASE)
_SPAN = re.compile(r"<(span|div)\b([^<>]*+)>[^<]*+</\1\s*>", re.IGNORECASE)
_POEM = re.compile(r"<poem\b[^<>]*+>([^<]*+(?:<(?!/?poem\b)[^<]*+)*+)</poem\s*>", re.IGNORECASE)
_MARK = re.compile(rf"{MARK}(\d+){MARK}")
_SUPERSCRIPT = str.maketrans("0123456789+-−–", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻")
_SIGNS = re.compile(r"\{\{|\}\}|\[\[|\]\]|-\{|\}-")


def set_aside(text: str, kept: list[str]) -> str:
    """The text with verbatim elements replaced by marks; what they hold is appended to `kept`."""

    def mark(element: re.Match[str]) -> str:
        name, inside = element[1].lower(), element[2] or ""
        if name in {"math", "chem", "ce"}:
            formula = " ".join(inside.split())
            inside = f"${_SIGNS.sub(_apart, formula)}$" if formula else ""
        elif name in {"pre", "source", "syntaxhighlight"}:
            inside = "\n" + _SIGNS.sub(_apart, inside.strip("\n")) + "\n"
        if not inside:
            return ""
        kept.append(unescape(inside) if name in {"nowiki", "pre"} else inside)
        return f"{MARK}{len(kept) - 1}{MARK}"

    return _VERBATIM.sub(mark, text)


def put_back(text: str, kept: list[str]) -> str:
    """The text with its marks replaced by what was set aside."""
    return _MARK.sub(lambda mark: kept[int(mark[1])], text) if kept else text


def _apart(sign: re.Match[str]) -> str:
    """`{{` → `{ {`: the same to TeX and nearly all code, and no wikitext."""
    return f"{sign[0][0]} {sign[0][1]}"


def without_elements(text: str) -> str:
    """The text without comments (one that is not closed goes to the end, as in MediaWiki), references and the like."""
    return _GONE.sub("", _REF.sub("", text))


def without_tables(text: str) -> str:
    """The text without `<table>…</table>`, nested ones too; of one that is not closed only the tag goes, later."""
    if not _TABLE.search(text):
        return text
    pieces, position, begin, depth = [], 0, 0, 0
    for tag in _TABLE.finditer(text):
        if not tag[1]:
            begin, depth = (begin if depth else tag.start()), depth + 1
        elif depth:
            depth -= 1
            if depth == 0:
                pieces.append(text[position:begin])
                position = tag.end()
    pieces.append(text[position:])
    return "".join(pieces)


def without_tags(text: str) -> str:
    """The text without tags."""
    if "<" not in text:
        return text
    if "<sup" in text:
        text = _POWER.sub(lambda power: power[1].translate(_SUPERSCRIPT), text)
    if "display" in text:
        text = _SPAN.sub(lambda span: "" if "display:none" in span[2].replace(" ", "") else span[0], text)
    if "<poem" in text:
        text = _POEM.sub(lambda poem: poem[1].replace("\n", BREAK), text)
    return _STRIPPED.sub("", _BREAK.sub(BREAK, text))
