"""Signatures estimate the Jaccard similarity of the documents' shingles, in both languages."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mini_chat.data.cleaning.minhash import ROWS, SHINGLE_TOKENS, band_keys, shingles, similarity
from mini_chat.data.cleaning.tokens import tokenize

BANDS = 14


def words(language: str, count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    if language == "zh":
        return [chr(generator.randrange(0x4E00, 0x9000)) for _ in range(count)]
    return [f"w{generator.randrange(10**6)}" for _ in range(count)]


def joined(language: str, tokens: list[str]) -> str:
    return ("" if language == "zh" else " ").join(tokens)


def jaccard(text: str, other: str) -> float:
    (a, b) = (set(shingles(tokenize([one]))[0].tolist()) for one in (text, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("edits", [0, 2, 8, 25, 60])
def test_the_estimate_is_the_true_similarity_within_its_error(language: str, edits: int) -> None:
    errors = []
    for seed in range(12):
        before = words(language, 400, seed)
        after = list(before)
        for place in random.Random(seed).sample(range(400), edits):
            after[place] = words(language, 1, 1000 * seed + place)[0]
        pair = [joined(language, before), joined(language, after)]
        keys = band_keys(tokenize(pair), BANDS)
        true = jaccard(*pair)
        errors.append(float(similarity(keys[:1], keys[1:])[0]) - true)
        assert abs(errors[-1]) < 4.5 * (true * (1 - true) / (BANDS * ROWS)) ** 0.5 + 1e-9
    assert abs(np.mean(errors)) < 0.03


def test_a_shingle_is_five_words_or_five_characters() -> None:
    assert len(shingles(tokenize(["one two three four five six"]))[0]) == 6 - SHINGLE_TOKENS + 1
    assert len(shingles(tokenize(["一二三四五六七"]))[0]) == 7 - SHINGLE_TOKENS + 1


@pytest.mark.parametrize("text", ["one", "两字", "a b c d", "four words are here"])
def test_a_short_document_is_one_shingle_of_all_it_has(text: str) -> None:
    assert len(shingles(tokenize([text]))[0]) == 1
    assert shingles(tokenize([text]))[0] != shingles(tokenize([text + " more"]))[0]


def test_case_width_punctuation_and_space_make_no_difference() -> None:
    keys = band_keys(tokenize(["Hello,  World! 你好，世界。", "hello world ＨＥＬＬＯ 你好 世界"]), BANDS)
    assert not np.array_equal(keys[0], keys[1])
    keys = band_keys(tokenize(["Hello,  World! 你好，世界。", "ｈｅｌｌｏ WORLD 你好 世界"]), BANDS)
    assert np.array_equal(keys[0], keys[1])


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    texts = [joined("en", words("en", size, size)) for size in (3, 40_000, 1, 700, 20_000, 5)]
    together = band_keys(tokenize(texts), BANDS)
    for number, text in enumerate(texts):
        assert np.array_equal(band_keys(tokenize([text]), BANDS)[0], together[number])


def test_more_bands_begin_with_the_same_keys() -> None:
    tokens = tokenize([joined("en", words("en", 100, 1))])
    assert np.array_equal(similarity(band_keys(tokens, 3), band_keys(tokens, 3)), [1.0])
    assert band_keys(tokens, 3).shape == (1, 3)
