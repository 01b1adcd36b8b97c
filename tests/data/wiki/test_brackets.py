"""No empty brackets, no orphaned punctuation, and nothing else changed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat.data.wiki.brackets import repair

EMPTY = re.compile(r"[(（〔][\s,;:，；：、]*[)）〕]|《\s*》|〈\s*〉|「\s*」|『\s*』|【\s*】|“\s*”")


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        # as extractors leave them in the Chinese Wikipedia
        ("萬民福音部（）是羅馬教廷", "萬民福音部是羅馬教廷"),
        ("傳信部（，意為「傳佈」）", "傳信部（意為「傳佈」）"),
        ("甲（；）乙", "甲乙"),
        ("甲（、、）乙", "甲乙"),
        ("甲（， ，)乙", "甲乙"),
        ("甲（，简称，乙）", "甲（简称，乙）"),
        ("（；；德语：；法语：；西）", "（西）"),
        ("甲（英语：）乙", "甲乙"),
        ("甲（英语：，德語：Wort）乙", "甲（德語：Wort）乙"),
        ("甲（英语：Word；；法语：）乙", "甲（英语：Word）乙"),
        ("甲（，化學符號：《》）乙", "甲乙"),
        ("《》甲「」乙『 』", "甲乙"),
        ("甲、、乙，，丙，。丁", "甲、乙，丙。丁"),
        ("甲。。乙。。。", "甲。乙。。。"),
        # and in the English one
        ("Ambrosiaster ( , ) wrote", "Ambrosiaster wrote"),
        ("Plato (; born 428)", "Plato (born 428)"),
        ("Plato (born 428, )", "Plato (born 428)"),
        ("word (from Greek: ), and", "word, and"),
        ("(a, , b)", "(a, b)"),
        ("from Greek , i.e. so .", "from Greek, i.e. so ."),
        ("((a; ), b)", "((a), b)"),
        ("((( ; )))", ""),
        # what is meant
        ("「，」是逗號", "「，」是逗號"),
        ("f(x), g(x; y)", "f(x), g(x; y)"),
        ("ratio (3:1) and (see: this)", "ratio (3:1) and (see: this)"),
        ("（简称（Cosplay））", "（简称（Cosplay））"),
        ("a) b) (c", "a) b) (c"),
        (":) 甲（乙", ":) 甲（乙"),
        ("wait ... for .NET", "wait ... for .NET"),
    ],
)
def test_repair(text: str, repaired: str) -> None:
    assert repair(text) == repaired


TEXT = st.text(st.sampled_from("()（）《》「」“”,;，；、：:。 \nab甲乙"), max_size=60)


@given(TEXT)
def test_no_pair_is_empty_afterwards(text: str) -> None:
    for line in repair(text).split("\n"):
        if balanced(line):
            assert not EMPTY.search(line), line


@given(TEXT)
def test_letters_stay_but_those_of_labels(text: str) -> None:
    before, after = (re.sub(r"[^ab甲乙]", "", value) for value in (text, repair(text)))
    assert before == after or (":" in text or "：" in text)


@given(
    st.text(st.sampled_from("ab甲乙 ，。"), max_size=40).map(lambda text: re.sub(r"[ ，。]{2,}| (?=[，。])", "", text))
)
def test_text_without_brackets_is_left_alone(text: str) -> None:
    assert repair(text) == text


def balanced(line: str) -> bool:
    """Whether every bracket of the line has its partner: of others nobody can say what they hold."""
    pairs = {"(": 0, "（": 0, ")": 0, "）": 0, "《": 1, "》": 1, "「": 2, "」": 2, "“": 3, "”": 3}
    stack = []
    for sign in line:
        if sign in "(（《「“":
            stack.append(pairs[sign])
        elif sign in ")）》」”" and (not stack or stack.pop() != pairs[sign]):
            return False
    return not stack
