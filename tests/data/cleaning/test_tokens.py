"""Tokens by array arithmetic are those that a plain loop finds, wherever a document stands."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.cleaning.tokens import DIGIT, FOREIGN, HAN, LATIN, MARK, PASS_CHARACTERS, SPACE, Tokens, tokenize

TEXT = st.text(st.sampled_from("aBéＡzß09５中文国\U00020000あпα ,.，。!?（）\n\t-_😀ﬁ\u3000"), max_size=60)
TOKEN = re.compile("[\u4e00-\u9fff\U00020000-\U0003ffff]|(?:(?![\u4e00-\u9fff\U00020000-\U0003ffff])[^\\W_])+")


def plain_tokens(text: str) -> list[str]:
    folded = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in text)
    return [token.lower() for token in TOKEN.findall(folded)]


def tokens_of(tokens: Tokens, document: int) -> list[int]:
    return tokens.hashes_T[tokens.starts_D1[document] : tokens.starts_D1[document + 1]].tolist()


@given(st.lists(TEXT, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_tokens_are_those_of_a_plain_loop(texts: list[str]) -> None:
    tokens = tokenize(texts)
    expected = [plain_tokens(text) for text in texts]
    assert tokens.counts.tolist() == [len(own) for own in expected]
    assert tokens.lengths_T.tolist() == [len(token) for own in expected for token in own]
    names: dict[str, int] = {}
    for hash_, token in zip(tokens.hashes_T.tolist(), (token for own in expected for token in own), strict=True):
        assert names.setdefault(token, hash_) == hash_
    assert len(set(names.values())) == len(names)


@given(st.lists(TEXT, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_document_has_the_same_tokens_whatever_stands_beside_it(texts: list[str]) -> None:
    together = tokenize(texts)
    for number, text in enumerate(texts):
        alone = tokenize([text])
        assert tokens_of(together, number) == tokens_of(alone, 0)
        assert together.characters_DC[number].tolist() == alone.characters_DC[0].tolist()


def test_characters_are_counted_by_class() -> None:
    counts = tokenize(["ab é 12 中文， пあ\n"]).characters_DC[0]
    assert [int(counts[kind]) for kind in (SPACE, HAN, LATIN, DIGIT, MARK, FOREIGN)] == [5, 2, 3, 2, 1, 2]


def test_long_documents_are_cut_between_words() -> None:
    words = [f"word{number}" for number in range(PASS_CHARACTERS // 4)]
    tokens = tokenize([" ".join(words), " ".join(words[:10])])
    assert tokens.counts.tolist() == [len(words), 10]
    assert tokens_of(tokens, 0)[:10] == tokens_of(tokens, 1)
    assert len(np.unique(tokens.hashes_T)) == len(words)


def test_chosen_documents_keep_their_tokens() -> None:
    tokens = tokenize(["one two", "", "三四五", "six"])
    chosen = tokens.chosen(np.array([False, True, True, False]))
    assert chosen.counts.tolist() == [0, 3]
    assert tokens_of(chosen, 1) == tokens_of(tokens, 2)


def test_nothing_has_no_tokens() -> None:
    assert tokenize([]).counts.tolist() == []
    assert tokenize(["", "…！"]).counts.tolist() == [0, 0]
