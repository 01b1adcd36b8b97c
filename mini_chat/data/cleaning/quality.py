"""Which documents are not worth learning from: published heuristics, each with its source, by language.

| rule | English | Chinese | source |
|---|---|---|---|
| length | `min_words` | two characters count as a word | the idea: all of them |
| language | share of Latin words | share of Chinese characters, little kana | ChineseWebText arXiv:2311.01149 |
| digits among letters and digits | ≤ 30% | ≤ 30% | MAP-CC arXiv:2404.04167, rule 7; twice as many below a page |
| marks among what is no space | ≤ 65% | ≤ 65% | ours: what tables, ASCII art and encoded data have in common |
| undecodable characters (U+FFFD) | ≤ 0.1% | ≤ 0.1% | ours: text decoded in a wrong way |
| `lorem ipsum` | none | none | C4 arXiv:1910.10683, section 2.2 |
| repeated phrases, lines, paragraphs | Gopher | MAP-CC | see `repetition` |
| mean word length | 3 to 10 | – | Gopher arXiv:2112.11446, A.1.1 |
| words with a letter | ≥ 80% | – | Gopher |
| stop words | ≥ 2 | ≥ 2 of 的是不了在有和人这中… | Gopher; for Chinese the most frequent characters |
| `#` (headings aside) and `…` to words | ≤ 10% | ≤ 10% | Gopher; MAP-CC rules 4, 5 |
| lines that begin with a bullet | ≤ 90% | ≤ 90% | Gopher; MAP-CC rule 9 |
| lines that end in an ellipsis, "more" | ≤ 30% | ≤ 30% | Gopher; MAP-CC rule 8 |
| lines of prose that end in punctuation | > 12% | > 12% | FineWeb arXiv:2406.17557, section 3.6 |
| short lines of prose (≤ 30 characters; Chinese 15) | < 67% | < 67% | FineWeb |
| characters in 【】 | – | ≤ 10% | MAP-CC rule 6 |

All from "mean word length" on are made for whole web pages and are applied from `page_words` words on, since a heading,
a sentence or a paragraph breaks several of them rightly. So are the Gopher limits of repetition. Lines of prose are all
but headings, list items, rows of tables and code, which technical text has many of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mini_chat.data.cleaning.lines import prose_lines
from mini_chat.data.cleaning.repetition import repeats_lines, repeats_phrases
from mini_chat.data.cleaning.tokens import DIGIT, FOREIGN, HAN, LATIN, MARK, SPACE, Tokens

if TYPE_CHECKING:
    from mini_chat.config import Clean

TOO_SHORT = "too short"
TOO_LONG = "too long"
OTHER_LANGUAGE = "other language"
DIGITS = "mostly digits"
MARKS = "mostly marks"
UNDECODABLE = "undecodable characters"
FILLER = "filler text"
PHRASES = "repeated phrases"
LINES = "repeated lines"
WORD_LENGTH = "mean word length"
NO_LETTERS = "words without letters"
STOP_WORDS = "no stop words"
SYMBOLS = "# and … to words"
BULLETS = "bullet lines"
ELLIPSES = "lines that break off"
UNFINISHED = "lines without an end"
SHORT_LINES = "short lines"
BRACKETED = "text in 【】"

KANA_SHARE = 0.2  # of the Chinese characters: Japanese has more kana than kanji
UNDECODABLE_SHARE = 0.001
MEAN_WORD_LENGTH = (3, 10)
LETTER_WORDS = 0.8
SYMBOL_RATIO = 0.1
BULLET_SHARE, ELLIPSIS_SHARE, ENDED_SHARE, SHORT_SHARE = 0.9, 0.3, 0.12, 0.67
SHORT_CHARACTERS, SHORT_CHARACTERS_ZH = 30, 15
MIN_LINES = 4  # from which on shares of lines say something
BRACKETED_SHARE = 0.1

_STOP_WORDS = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)
# The ten most frequent characters, and the commonest particles of classical prose.
_STOP_CHARACTERS = re.compile("[的是不了在有和人这中之而也以为于其曰]")
_BULLETS = "•●○■□▪▫※·➢‣▶◀◦–"  # MAP-CC's; Markdown's list items are prose as often as not
_STRUCTURE = frozenset(" \t|#>:*+-" + _BULLETS)
_NUMBERED = re.compile(r"[0-9]{1,3}[.)、]|[一二三四五六七八九十]{1,3}、")
_ELLIPSES = ("...", "…", "。。。", "read more", "readmore", "展开", "更多")
_AFTER_ELLIPSIS = "]】）)»>→ "
_ENDS = (*".!?,:;\"')”’。！？，：；…」』）】、",)
_BRACKETED = re.compile(r"【([^【】]*)】")


def judge(texts: Sequence[str], languages: Sequence[str], tokens: Tokens, settings: Clean) -> list[str | None]:
    """For each document why it is dropped, or None.

    Args:
        languages: `zh` and `en` have rules of their own; for any other only those hold that know no language.
        tokens: of the same texts.
    """
    characters = tokens.characters_DC
    latin, foreign, numbers = (_words(tokens, kind) for kind in (LATIN, FOREIGN, DIGIT))
    han = characters[:, HAN]
    words = latin + foreign + numbers + han / 2
    chinese = np.array([language == "zh" for language in languages], bool)
    english = np.array([language == "en" for language in languages], bool)
    own = np.where(chinese, han, latin)
    letters = characters[:, [HAN, LATIN, FOREIGN]].sum(axis=1)
    seen = characters.sum(axis=1) - characters[:, SPACE]
    page = words >= settings.page_words
    # A page of figures is a table; a sentence may well hold a date.
    digit_share = np.where(page, settings.max_digit_share, min(2 * settings.max_digit_share, 1.0))

    verdicts: list[str | None] = [None] * len(texts)
    rules = [
        (TOO_SHORT, words < settings.min_words),
        (TOO_LONG, (words > settings.max_words) & (settings.max_words > 0)),
        (DIGITS, characters[:, DIGIT] > digit_share * (letters + characters[:, DIGIT])),
        (MARKS, characters[:, MARK] > settings.max_mark_share * seen),
        (
            OTHER_LANGUAGE,
            ((chinese | english) & (own < settings.min_language_share * (han + latin + foreign)))
            | (chinese & (characters[:, FOREIGN] > KANA_SHARE * han)),
        ),
        (PHRASES, _phrases(tokens, page, chinese, settings)),
    ]
    if settings.page_rules:
        length = characters[:, LATIN] / np.maximum(latin, 1)
        low, high = MEAN_WORD_LENGTH
        rules += [
            (WORD_LENGTH, page & english & ((length < low) | (length > high))),
            (NO_LETTERS, page & english & (numbers > (1 - LETTER_WORDS) * words)),
        ]
    for reason, broken in reversed(rules):
        for number in np.flatnonzero(broken).tolist():
            verdicts[number] = reason
    for number, text in enumerate(texts):
        if verdicts[number] is None:
            verdicts[number] = _judge_text(text, languages[number], float(words[number]), bool(page[number]), settings)
    return verdicts


def _phrases(tokens: Tokens, page: np.ndarray, chinese: np.ndarray, settings: Clean) -> np.ndarray:
    return repeats_phrases(tokens, page, chinese) if settings.repetition else np.zeros(len(page), bool)


def _words(tokens: Tokens, kind: int) -> np.ndarray:
    """How many tokens of a kind each document has."""
    ends = np.concatenate(([0], np.cumsum(tokens.kinds_T == kind)))
    return ends[tokens.starts_D1[1:]] - ends[tokens.starts_D1[:-1]]


class Page(NamedTuple):
    """A text and what its rules ask for."""

    text: str
    language: str
    words: float
    lines: list[str]
    """Lines that hold something, stripped."""
    prose: list[str]
    """Those of them that are no headings, list items, rows of a table or code."""


def _judge_text(text: str, language: str, words: float, page: bool, settings: Clean) -> str | None:
    """The rules that look at the text itself."""
    if text.count("\ufffd") > UNDECODABLE_SHARE * len(text):
        return UNDECODABLE
    if "orem ipsum" in text:
        return FILLER
    if not page:
        return None
    lines = text.split("\n")
    if settings.repetition and len(lines) > 1:
        long_lines = [line for _, line in prose_lines(lines)]
        if repeats_lines(long_lines) or ("\n\n" in text and repeats_lines([*filter(None, text.split("\n\n"))])):
            return LINES
    if not settings.page_rules:
        return None
    about = Page(
        text,
        language,
        words,
        [stripped for line in lines if (stripped := line.strip())],
        [line.rstrip() for line in lines if line and line[0] not in _STRUCTURE and not _NUMBERED.match(line)],
    )
    return next((reason for reason, is_broken in _PAGE_RULES if is_broken(about)), None)


def _lacks_stop_words(page: Page) -> bool:
    pattern = {"en": _STOP_WORDS, "zh": _STOP_CHARACTERS}.get(page.language)
    if pattern is None:
        return False
    found = pattern.finditer(page.text)
    return next(found, None) is None or next(found, None) is None


def _has_symbols(page: Page) -> bool:
    limit = SYMBOL_RATIO * page.words
    ellipses = page.text.count("...") + page.text.count("…")
    if ellipses > limit:
        return True
    hashes = page.text.count("#")  # those of Markdown's headings are none
    return hashes > limit and hashes - sum(len(line) - len(line.lstrip("#")) for line in page.lines) > limit


def _has_bullets(page: Page) -> bool:
    if len(page.lines) < MIN_LINES:
        return False
    return sum(line[0] in _BULLETS for line in page.lines) > BULLET_SHARE * len(page.lines)


def _breaks_off(page: Page) -> bool:
    if len(page.lines) < MIN_LINES:
        return False
    ends = [line[-10:].rstrip(_AFTER_ELLIPSIS).lower() for line in page.lines]
    return sum(end.endswith(_ELLIPSES) for end in ends) > ELLIPSIS_SHARE * len(page.lines)


def _lacks_ends(page: Page) -> bool:
    if len(page.prose) < MIN_LINES:
        return False
    return sum(line.endswith(_ENDS) for line in page.prose) <= ENDED_SHARE * len(page.prose)


def _has_short_lines(page: Page) -> bool:
    limit = SHORT_CHARACTERS_ZH if page.language == "zh" else SHORT_CHARACTERS
    if len(page.prose) < MIN_LINES:
        return False
    return sum(len(line) <= limit for line in page.prose) >= SHORT_SHARE * len(page.prose)


def _has_bracketed(page: Page) -> bool:
    return "【" in page.text and sum(map(len, _BRACKETED.findall(page.text))) > BRACKETED_SHARE * len(page.text)


_PAGE_RULES: tuple[tuple[str, Callable[[Page], bool]], ...] = (
    (STOP_WORDS, _lacks_stop_words),
    (SYMBOLS, _has_symbols),
    (BULLETS, _has_bullets),
    (ELLIPSES, _breaks_off),
    (UNFINISHED, _lacks_ends),
    (SHORT_LINES, _has_short_lines),
    (BRACKETED, _has_bracketed),
)
