"""Mending a text: one spelling of the same characters, nothing invisible, no markup and no brackets left empty.

Every function takes a text and gives a text; what changed is told by comparing. All run in time linear in the text,
whatever it holds: patterns have no nested or neighbouring repetitions that could try one stretch in two ways.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from mini_chat.data.hanzi import FULL_WIDTH_MARKS, SHARED_MARKS

Form = Literal["nfc", "nfkc", "off"]

# Controls but tab and line ends, soft hyphen, direction and zero-width marks, byte-order marks, interlinear notes,
# non-characters, private use, tags, and halves of surrogate pairs.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\uf8ff\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U000e0000-\U0010ffff]"
)
# Joiners shape Persian, Indic scripts and emoji; beside ASCII, Chinese and full-width forms they are dirt.
_PLAIN = "\x00-\x7f\u2e80-\u9fff\uff00-\uffef"
_STRAY_JOINER = re.compile(
    f"(?<=[{_PLAIN}])[\u200c\u200d]+|[\u200c\u200d]+(?=[{_PLAIN}])|\\A[\u200c\u200d]+|[\u200c\u200d]+\\Z"
)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_ODD_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INDENT = re.compile("^[ \xa0]*\u3000[ \xa0\u3000]*", re.MULTILINE)
_SPACES = re.compile(r"[ \t]{2,}")
_BLANK_LINES = re.compile(r"\n{3,}")
_KEPT_BY_NFKC = re.compile(
    f"([{re.escape(FULL_WIDTH_MARKS + SHARED_MARKS)}\xb2\xb3\xb9\u2070-\u2099\xbc-\xbe\u2150-\u215e]+)"
)

_ENTITY = re.compile(r"&(?:amp;){0,4}(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BLOCK_TAGS = "br|hr|div|table|tbody|thead|tr|td|th|ul|ol|li|h[1-6]|blockquote|center|section|article|header|footer|nav"
_INLINE_TAGS = "span|font|strong|em|small|big|sup|sub|img|label|button|iframe|noscript"
# Names of one letter only in lower case: <T>, <A> and <B> are type parameters.
_TAG = re.compile(rf"</?(?:(?P<block>(?i:{_BLOCK_TAGS})|p)|(?i:{_INLINE_TAGS})|a|b|i|u)(?:\s[^<>]*)?/?>")
_UNSEEN_BLOCK = re.compile(r"<(?:(script|style)\b|!--)", re.IGNORECASE)

# A mark in brackets behind the word for a mark, as in 逗号（，）, is meant; so is (,), unlike ( , ).
_EMPTY_FULL = re.compile(r"（[\s，；、：,;:/·]*）|【\s*】|〔\s*〕|《\s*》|〈\s*〉|「\s*」|『\s*』|［\s*］|\{\{\s*\}\}")
_WORDS_FOR_MARKS = tuple("号號符点點杠槓线線")
_EMPTY_ASCII = re.compile(r"\([\s,;，；、]*\)")
_EMPTY_ASCII_SPACE = re.compile(rf" ?{_EMPTY_ASCII.pattern}")
_DANGLING_LEAD = re.compile(r"（(?:[，；、,;]\s*)+")
_DANGLING_TAIL = re.compile(r"(?<!（)[，；、]+）")
_DANGLING_ASCII = re.compile(r"\((?:[,;]\s+)+(?=\w)(?![^();]*;)")
_BRACKET_PASSES = 3  # brackets in brackets


def unify_characters(text: str, form: Form = "nfc") -> str:
    """The text in one Unicode normalisation form (UAX #15).

    `nfkc` also brings compatibility forms to plain ones (ﬁ, Ａ, ㎏), but leaves what it would take from Chinese and
    from formulas: full-width punctuation, the ellipsis, super- and subscripts, fractions.
    """
    if form == "off" or text.isascii():
        return text
    if form == "nfc":
        return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)
    pieces = _KEPT_BY_NFKC.split(text)
    pieces[::2] = [unicodedata.normalize("NFKC", piece) for piece in pieces[::2]]
    return unicodedata.normalize("NFC", "".join(pieces))


def remove_invisible(text: str) -> str:
    """The text without control characters, zero-width and direction marks, soft hyphens, private-use characters.

    Line and paragraph separators of every kind become line ends.
    """
    if text.isprintable() or text.replace("\n", "").isprintable():  # many times faster than the patterns
        return text
    text = _LINE_END.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    return _STRAY_JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def collapse_white_space(text: str) -> str:
    """One kind of space, none at the ends of lines, single ones within them, at most one blank line.

    Spaces stay where they may mean something: in lines that begin with a space or a mark (code, lists, tables, the
    prompts of an interpreter), but for the indentation of Chinese paragraphs (U+3000).
    """
    text = text.strip()
    if not (text.isascii() or text.isprintable()):
        if "\u3000" in text:
            text = _INDENT.sub("", text)
        text = _ODD_SPACE.sub(" ", text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "  " in text or "\t" in text:
        text = "\n".join([_SPACES.sub(" ", line) if line[:1].isalnum() else line for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def remove_html(text: str) -> str:
    """The text without what is left of HTML: scripts, comments, tags of layout, character references."""
    if "<" in text:
        text = _remove_unseen(text)
        text = _TAG.sub(_without_tag, text)
    if "&" in text and ";" in text:
        text = _ENTITY.sub(_resolve, text)
    return text


def _without_tag(tag: re.Match[str]) -> str:
    text, before = tag[0], _before(tag)
    no_attribute = " " in text and "=" not in text and not text.endswith("/>")  # `<strong reference>`
    type_parameter = len(text) == 3 and before.isascii() and before.isalnum()  # `Vec<u>`
    if before == "`" or no_attribute or type_parameter:
        return text
    return "\n" if tag["block"] else ""


def _before(found: re.Match[str]) -> str:
    """The character before what was found; empty at the beginning."""
    return found.string[found.start() - 1 : found.start()] if found.start() else ""


def _resolve(entity: re.Match[str]) -> str:
    if _before(entity) == "`":
        return entity[0]
    name = f"&{entity[1]};"
    resolved = html.unescape(name)
    return entity[0] if resolved == name else resolved


def _remove_unseen(text: str) -> str:
    """Without scripts, styles and comments. One that is never closed stays, and ends the search for its kind."""
    kept: list[str] = []
    position, open_ended = 0, set[str]()
    for opening in _UNSEEN_BLOCK.finditer(text):
        kind = (opening[1] or "!").lower()
        if opening.start() < position or kind in open_ended or _before(opening) == "`":
            continue
        closing = _CLOSING[kind].search(text, opening.end())
        if closing is None:
            open_ended.add(kind)
            continue
        kept.append(text[position : opening.start()])
        position = closing.end()
    return "".join((*kept, text[position:])) if position else text


_CLOSING = {
    "script": re.compile("</script *>", re.IGNORECASE),
    "style": re.compile("</style *>", re.IGNORECASE),
    "!": re.compile("-->"),
}


def remove_empty_brackets(text: str) -> str:
    """The text without brackets that hold nothing, and without separators left dangling in others.

    Such brackets are what removing templates leaves of dates and sounds: `中国（；）`, `Laozi ( , )`, `（，1949）`.
    """
    if "(" in text:
        if _EMPTY_ASCII.search(text):
            text = _stable(lambda text: _EMPTY_ASCII_SPACE.sub(_without_empty_ascii, text), text)
        text = _DANGLING_ASCII.sub(_without_lead, text)
    if not text.isascii() or "{{" in text:
        text = _stable(_without_empty_full, text)
    return text


def _without_empty_ascii(bracket: re.Match[str]) -> str:
    """Nothing, if the brackets (with the space before them) are empty and no code: `f()`, `x = ()`, `for (;;)` are."""
    inside = bracket[0].strip()[1:-1]
    if inside.strip():
        return "" if len(inside.split()) > 1 or inside != inside.strip() else bracket[0]
    follows = bracket.string[bracket.end() : bracket.end() + 1]
    before = _before(bracket)
    behind_word = bracket[0].startswith(" ") and before.isascii() and before.isalnum()
    return "" if behind_word and (not follows or follows in " \n,.;:!?，。；：！？") else bracket[0]


def _without_empty_full(text: str) -> str:
    if "（" in text:
        text = _DANGLING_LEAD.sub(_without_full_lead, text)
        if "，）" in text or "；）" in text or "、）" in text:
            text = _DANGLING_TAIL.sub("）", text)
    return _EMPTY_FULL.sub(_without_full, text)


def _without_full(bracket: re.Match[str]) -> str:
    return bracket[0] if len(bracket[0]) > 2 and _before(bracket) in _WORDS_FOR_MARKS else ""


def _without_full_lead(lead: re.Match[str]) -> str:
    closed = lead.string[lead.end() : lead.end() + 1] == "）"
    return lead[0] if closed and _before(lead) in _WORDS_FOR_MARKS else "（"


def _without_lead(bracket: re.Match[str]) -> str:
    return "(" if not _before(bracket).strip() else bracket[0]


def _stable(change: Callable[[str], str], text: str) -> str:
    for _ in range(_BRACKET_PASSES):
        before, text = text, change(text)
        if text == before:
            break
    return text
