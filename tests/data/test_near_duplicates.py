"""Near-duplicates: found by the share of their 8-grams, in whatever company they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data import near_duplicates
from mini_chat.data.near_duplicates import GRAM, MIN_TOKENS, NearDuplicates, gram_hashes, sampled


def random_tokens(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 32_000, size).astype(np.uint16)


def find(held_out: list[np.ndarray], others: list[np.ndarray], overlap: float = 0.5) -> list[bool]:
    lengths = np.array([len(tokens) for tokens in others], np.int64)
    return NearDuplicates(held_out, overlap).find(np.concatenate(others), lengths).tolist()


def by_hand(held_out: list[np.ndarray], tokens: np.ndarray, overlap: float) -> bool:
    """The rule in words, with sets."""

    def grams(text: np.ndarray) -> list[tuple[int, ...]]:
        chosen = set(sampled(gram_hashes(text)).tolist())
        return [tuple(text[at : at + GRAM].tolist()) for at in range(len(text) - GRAM + 1) if at in chosen]

    mine = grams(tokens)
    best = max((sum(gram in set(grams(other)) for gram in mine) for other in held_out), default=0)
    return len(tokens) >= MIN_TOKENS and bool(mine) and best > 0 and best >= overlap * len(mine)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([0.3, 0.5, 0.9]))
def test_what_is_found_is_what_the_rule_says(data: st.DataObject, overlap: float) -> None:
    # Few different tokens and pieces of one another: shared n-grams, repeated ones, and all shades of likeness.
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    held_out = [draw.integers(0, 3, int(size)).astype(np.uint16) for size in draw.integers(1, 300, 4)]
    pieces = [*held_out, draw.integers(0, 3, 200).astype(np.uint16), draw.integers(0, 9, 200).astype(np.uint16)]
    others = []
    for _ in range(8):
        chosen = [pieces[number] for number in draw.integers(0, len(pieces), 2)]
        others.append(np.concatenate([piece[int(draw.integers(len(piece))) :] for piece in chosen]))
    assert find(held_out, others, overlap) == [by_hand(held_out, tokens, overlap) for tokens in others]


@pytest.mark.parametrize(("changed", "near"), [(0.0, True), (0.04, True), (0.2, False), (1.0, False)])
def test_light_edits_are_near_and_heavy_ones_are_not(changed: float, near: bool) -> None:
    original = random_tokens(1000, 0)
    copy = original.copy()
    places = np.random.default_rng(1).choice(1000, int(1000 * changed), replace=False)
    copy[places] = random_tokens(len(places), 2)
    strangers = [random_tokens(500, seed) for seed in range(3, 20)]
    assert (
        find([random_tokens(700, 99), original], [*strangers, copy, *strangers]) == [False] * 17 + [near] + [False] * 17
    )


def test_a_mosaic_of_many_held_out_documents_is_near_none() -> None:
    held_out = [random_tokens(400, seed) for seed in range(8)]
    mosaic = np.concatenate([tokens[:50] for tokens in held_out])
    assert find(held_out, [mosaic, held_out[3][:200]]) == [False, True]


def test_short_documents_are_left_to_their_hash_and_0_looks_for_none() -> None:
    text = random_tokens(200, 0)
    assert find([text], [text[: MIN_TOKENS - 1], text]) == [False, True]
    assert find([text], [text], overlap=0) == [False]
    assert find([], [text]) == [False]


def test_where_the_chunks_end_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [random_tokens(300, seed) for seed in range(4)]
    others = [*held_out, *(random_tokens(150, seed) for seed in range(50, 70)), held_out[1][40:]]
    whole = find(held_out, others)
    for size in (1, 200, 1000):
        monkeypatch.setattr(near_duplicates, "CHUNK_TOKENS", size)
        assert find(held_out, others) == whole
    assert whole == [True] * 4 + [False] * 20 + [True]


def test_a_quarter_of_the_n_grams_is_looked_at() -> None:
    hashes = gram_hashes(random_tokens(40_000, 0))
    assert len(hashes) == 40_000 - GRAM + 1 == len(np.unique(hashes))
    assert len(sampled(hashes)) / len(hashes) == pytest.approx(0.25, abs=0.01)
