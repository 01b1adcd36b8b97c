"""Wikitext → text, in one pass over each kind of markup.

Every step takes time linear in its input, whatever that is: nesting is read by scanners with a stack, and regular
expressions never look past the next sign of their kind. A step whose signs do not occur costs a search for them.
"""

from __future__ import annotations

import re
from html import unescape
from typing import NamedTuple

from mini_chat.data.wiki import brackets, tables, tags
from mini_chat.data.wiki.blocks import Blocks
from mini_chat.data.wiki.language_conversion import Converter
from mini_chat.data.wiki.links import external_links, other_links, plain_links
from mini_chat.data.wiki.templates import Templates


class Article(NamedTuple):
    """What a page says."""

    text: str
    title: str
    """Another title that the page asks for, or nothing."""
    is_disambiguation: bool
    """Whether it only lists what a word may mean."""


_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_QUOTES = re.compile("''+")
_POSSESSIVE = re.compile(r"'''(?<=\w''')(?=s\b)")  # ''Titanic'''s: two for italics, one for the genitive
_SWITCH = re.compile(r"__[^\W\d_]{2,24}__")
_UNSEEN = ("\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\xad")
_SPACES = ("\xa0", "\u2009", "\u202f", "\u200a", "\u2002", "\u2003", "\t")
_RESIDUE = (
    *((sign, re.compile(re.escape(sign) * 2 + "+")) for sign in "[]{}"),
    ("<", re.compile(r"</?ref\b[^<>]*+>?", re.IGNORECASE)),
)


def clean(text: str, variant: str | None = None, keep_apparatus: bool = False) -> Article:
    """The text of a page's wikitext.

    Args:
        variant: which side of Chinese conversion marks is taken, such as `zh-cn`; None: the page is not Chinese.
        keep_apparatus: whether sections of references, links and further reading stay.
    """
    kept: list[str] = []
    converter = Converter(variant) if variant else None
    templates = Templates(converter)
    for sign in (tags.MARK, tags.BREAK):
        if sign in text:
            text = text.replace(sign, "")
    if "<" in text:
        text = tags.without_elements(tags.set_aside(text, kept))
    if converter is not None:
        text = converter.evaluate(text)
    text = other_links(tables.without_tables(templates.expand(plain_links(text))))
    text = tags.without_tags(tags.without_tables(text))
    text = _without_quotes(_SWITCH.sub("", external_links(text)))
    text = Blocks(keep_apparatus).read(brackets.repair(_characters(text)))
    if converter is not None:
        text = converter.apply_rules(text)
    text = without_residue(tags.put_back(text, kept))
    return Article(text.strip(), converter.title if converter else "", templates.is_disambiguation)


def _without_quotes(text: str) -> str:
    """The text without the signs of bold and italics."""
    return _QUOTES.sub("", _POSSESSIVE.sub("'", text))


def _characters(text: str) -> str:
    """Entities as characters, one kind of space, nothing that is not seen."""
    if "&" in text:
        text = _ENTITY.sub(lambda entity: unescape(entity[0]), text.replace("&nbsp;", " "))
    if text.isascii():
        return text
    for sign in _UNSEEN:
        if sign in text:
            text = text.replace(sign, "")
    for sign in _SPACES:
        if sign in text:
            text = text.replace(sign, " ")
    return text


def without_residue(text: str) -> str:
    """The text without what still looks like markup: written as entities, or in code."""
    for sign, residue in _RESIDUE:
        if sign in text:  # a search for one character costs next to nothing
            text = residue.sub("", text)
    if "{" in text or "}" in text:
        text = text.replace("-{", "- {").replace("}-", "} -")
    return text
