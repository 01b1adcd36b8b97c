"""Each rule drops what it is made for, and none of them drops paragraphs for not being pages."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from mini_chat.config import Clean, Source
from mini_chat.data.cleaning import quality
from mini_chat.data.cleaning.cleaner import Cleaner
from mini_chat.data.cleaning.quality import judge
from mini_chat.data.cleaning.repetition import repeats_phrases
from mini_chat.data.cleaning.tokens import tokenize
from mini_chat.data.documents import read_documents
from mini_chat.data.tally import Tally

REAL_DATA = Path(os.environ.get("MINI_CHAT_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}: set MINI_CHAT_DATA")

WORDS = ["time", "way", "year", "work", "day", "man", "world", "life", "hand", "part", "child", "eye", "woman", "week"]
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]


def english(words: int, seed: int = 1) -> str:
    """Sentences of random words, with stop words and full stops."""
    generator = random.Random(seed)
    sentences = []
    for _ in range(words // 10):
        some = [generator.choice(WORDS) + generator.choice(["", "s", "ly", "ing"]) for _ in range(8)]
        sentences.append(f"The {' '.join(some)} of {generator.randrange(10)}.")
    return " ".join(sentences)


def chinese(characters: int, seed: int = 1) -> str:
    generator = random.Random(seed)
    return "".join("".join(generator.choices(HAN, k=19)) + "的，" for _ in range(characters // 20)) + "是了。"


def verdict(text: str, language: str = "en", **settings: object) -> str | None:
    return judge([text], [language], tokenize([text]), Clean.model_validate(settings))[0]


PAGE, PAGE_ZH = english(400), chinese(800)


def test_good_pages_and_paragraphs_pass() -> None:
    assert verdict(PAGE) is None
    assert verdict(PAGE_ZH, "zh") is None
    assert verdict("The shortest paragraph.") is None
    assert verdict("一段很短的话。", "zh") is None


@pytest.mark.parametrize(
    ("reason", "text", "language"),
    [
        (quality.TOO_SHORT, "Heading", "en"),
        (quality.TOO_SHORT, "标题", "zh"),
        (quality.OTHER_LANGUAGE, "This is English in a Chinese source.", "zh"),
        (quality.OTHER_LANGUAGE, "これは日本語の文章です、漢字も少しあります。", "zh"),
        (quality.OTHER_LANGUAGE, "这是英文来源里的中文。", "en"),
        (quality.OTHER_LANGUAGE, "Это русский текст в английском источнике.", "en"),
        (quality.DIGITS, "3.14159 2.71828 1.41421 pi", "en"),
        (quality.DIGITS, "13 27 45 2026 价格 99 元", "zh"),
        (quality.MARKS, "a | b | === *** --- === ***", "en"),
        (quality.UNDECODABLE, "Text with \ufffd\ufffd in the wrong encoding.", "en"),
        (quality.FILLER, "Lorem ipsum dolor sit amet is what it says.", "en"),
        (quality.PHRASES, "buy cheap watches online now " * 60, "en"),
        (quality.PHRASES, "便宜的手表在线购买" * 60, "zh"),
        (quality.LINES, "\n".join(chinese(60, number % 12) for number in range(20)), "zh"),
        (quality.WORD_LENGTH, english(200) + " " + " ".join(f"{'x' * 30}{number}" for number in range(200)), "en"),
        (quality.STOP_WORDS, PAGE.replace("The ", "Das ").replace(" of ", " von "), "en"),
        (quality.STOP_WORDS, PAGE_ZH.translate(dict.fromkeys(map(ord, "的是不了在有和人这中之而也以为于其曰"))), "zh"),
        (quality.SYMBOLS, PAGE.replace(" w", " #w"), "en"),
        (quality.BULLETS, "\n".join(f"• {english(20, number)}" for number in range(20)), "en"),
        (quality.ELLIPSES, "\n".join(f"{english(20, number)[:-1]}..." for number in range(20)), "en"),
        (quality.ELLIPSES, "\n".join(f"{chinese(40, number)}展开" for number in range(20)), "zh"),
        (quality.UNFINISHED, "\n".join(english(20, number)[:-1] for number in range(20)), "en"),
        (quality.SHORT_LINES, "\n".join(f"The {WORDS[n % 14]} of {WORDS[n % 13]}{n}." for n in range(60)), "en"),
        (
            quality.BRACKETED,
            "\n".join(f"【{chinese(20, -number)}】{chinese(40, number)}" for number in range(20)),
            "zh",
        ),
    ],
)
def test_a_rule_drops_what_it_is_made_for(reason: str, text: str, language: str) -> None:
    assert verdict(text, language) == reason


def test_words_without_letters() -> None:
    text = " ".join(f"{sentence} {n} {n + 7} {n + 9}" for n, sentence in enumerate(PAGE.split(". ")))
    assert verdict(text) == quality.NO_LETTERS


@pytest.mark.parametrize("text", [f"# {WORDS[0]} heading {n}\n\n- item {n}\n- item" for n in range(3)])
def test_headings_and_lists_are_no_bad_prose(text: str) -> None:
    page = "\n\n".join(f"## {WORDS[n % 14]} {n}\n\n- {english(10, n)[:-1]}" for n in range(40))
    assert verdict(page) is None
    assert verdict(text) is None


def test_settings_turn_rules_off() -> None:
    assert verdict("buy cheap watches online now " * 60, repetition=False, page_rules=False) is None
    assert verdict("\n".join(english(20, number)[:-1] for number in range(20)), page_rules=False) is None
    assert verdict(english(20, 5), page_words=10) is None
    assert verdict("Heading", min_words=0) is None
    assert verdict(PAGE, max_words=100) == quality.TOO_LONG
    assert verdict("这是英文来源里的中文。", min_language_share=0) is None
    assert verdict("3.14159 2.71828 1.41421 pi", max_digit_share=0.5) is None


def test_other_languages_have_only_the_rules_that_know_no_language() -> None:
    assert verdict("Это русский текст.", "ru") is None
    assert verdict("buy cheap watches online now " * 60, "fr") == quality.PHRASES


@pytest.mark.parametrize("copies", [1, 2, 5, 40])
def test_a_phrase_may_come_again_but_not_fill_the_page(copies: int) -> None:
    text = english(400, 7) + " a phrase of exactly nine words that comes again" * copies
    words = text.split()
    repeated = (copies - 1) * len(" a phrase of exactly nine words that comes again".replace(" ", ""))
    over = repeated > 0.15 * sum(map(len, "".join(words).split("."))) or copies == 40
    tokens = tokenize([text])
    assert bool(repeats_phrases(tokens, np.array([True]), np.array([False]))[0]) == over


def test_a_verdict_does_not_depend_on_the_other_documents() -> None:
    generator = random.Random(5)
    texts = [
        generator.choice([english, chinese])(generator.choice([10, 100, 600]), seed) * generator.choice([1, 1, 3])
        for seed in range(60)
    ]
    languages = [generator.choice(["en", "zh"]) for _ in texts]
    together = judge(texts, languages, tokenize(texts), Clean())
    alone = [verdict(text, language) for text, language in zip(texts, languages, strict=True)]
    assert together == alone
    assert len(set(together)) >= 3


# What is dropped by the rules beyond lines that are in another language or too short, which these files do have.
MOST_DROPPED = {
    ("python-docs-zh-en/pairs.jsonl", "en", "en"): 0.005,
    ("python-docs-zh-en/pairs.jsonl", "zh", "zh"): 0.005,
    ("pingcap-docs-zh/pingcap-zh.jsonl", "text", "zh"): 0.04,
    ("rust-book-en/rustbook-en.jsonl", "text", "en"): 0.02,
    ("trpl-zh/trpl-zh.jsonl", "text", "zh"): 0.03,
    ("classic-novels-zh/三国演义.txt", "text", "zh"): 0.005,
    ("tinyshakespeare/input.txt", "text", "en"): 0.01,
    ("tatoeba-cmn-en/cmn.txt", "text", "auto"): 0.005,
    ("zhwiki-extracted/wiki_00.simplified.jsonl", "text", "zh"): 0.05,
}


@needs_real_data
@pytest.mark.parametrize(("file", "field", "language"), MOST_DROPPED)
def test_real_text_is_hardly_dropped(file: str, field: str, language: str) -> None:
    source = Source(path=str(REAL_DATA / file), field=field, language=language)
    documents = [document for document, _ in zip(read_documents([source], Tally()), range(3_000), strict=False)]
    cleaner = Cleaner(Clean())
    dropped = 0
    for start in range(0, len(documents), 100):
        some = documents[start : start + 100]
        cleaned, _ = cleaner([document.text for document in some], [document.language for document in some])
        expected = {None, quality.OTHER_LANGUAGE, quality.TOO_SHORT}
        dropped += sum(outcome.reason not in expected for outcome in cleaned)
    assert dropped <= MOST_DROPPED[file, field, language] * len(documents)


@needs_real_data
def test_empty_brackets_of_real_wikipedia_text_go() -> None:
    source = Source(path=str(REAL_DATA / "zhwiki-extracted"), language="zh", format="jsonl")
    cleaner = Cleaner(Clean())
    before = after = 0
    for document in read_documents([source], Tally()):
        mended, _ = cleaner.mend(document.text)
        before += document.text.count("（）") + document.text.count("（，") + document.text.count("，）")
        after += mended.count("（）") + mended.count("（，") + mended.count("，）")
    assert before > 100
    assert after == 0
