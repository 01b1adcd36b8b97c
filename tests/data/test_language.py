"""Telling Chinese from English: the tables count what the regular expressions count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data import language
from mini_chat.data.language import guess_language

PARTS = st.sampled_from(
    ["word", " ", "字", "，", "𠮷", "豈", "㐀", "é", "9", "_", "😀", "カ", "\U00030000", "\U0001d49c"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS | st.characters(), min_size=1))
def test_tables_and_regular_expressions_count_the_same(parts: list[str]) -> None:
    text = "".join(parts)
    text *= language.FEW_CHARACTERS // len(text) + 1
    wanted = len(language._CHINESE.findall(text)), len(language._WORD.findall(text))
    assert language._counts(text) == wanted
    assert guess_language(text) == ("zh" if wanted[0] > wanted[1] else "en")


def test_every_character_of_the_basic_plane_is_what_the_regular_expressions_say() -> None:
    for first in range(0, 0xD800, 512):
        block = " ".join(map(chr, range(first, first + 512)))
        assert language._counts(block) == (len(language._CHINESE.findall(block)), len(language._WORD.findall(block)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("...", "en"), ("一句关于 `pip install transformers` 的中文", "zh"), ("He said “你好” to her.", "en")],
)
def test_words_count_and_not_letters(text: str, expected: str) -> None:
    assert guess_language(text) == guess_language(text * 50) == expected
    assert guess_language("") == "en"
