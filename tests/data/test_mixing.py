"""Mixing: languages get their shares, and nobody is seen more often than allowed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.mixing import language_epochs

LANGUAGES = ("de", "en", "zh")
COUNTS = st.fixed_dictionaries({language: st.integers(1, 10**9) for language in LANGUAGES})
SHARES = st.fixed_dictionaries({language: st.floats(0.01, 10) for language in LANGUAGES})
MOST = st.fixed_dictionaries({language: st.sampled_from([1.0, 2.0, 30.0]) for language in LANGUAGES})


@settings(max_examples=200, deadline=None)
@given(COUNTS, SHARES, st.floats(1, 20), MOST)
def test_the_shares_are_those_asked_for_within_the_epochs(
    tokens: dict[str, int], shares: dict[str, float], max_epochs: float, most: dict[str, float]
) -> None:
    epochs = language_epochs(tokens, shares, max_epochs, most)
    seen = {language: tokens[language] * epochs[language] for language in LANGUAGES}
    for language in LANGUAGES:
        assert seen[language] / sum(seen.values()) == pytest.approx(shares[language] / sum(shares.values()))
        assert epochs[language] * most[language] <= max(max_epochs, most[language]) * (1 + 1e-9)
    # As much text as that allows: some language is seen once, or some document as often as it may be.
    at_its_limit = [epochs[name] * most[name] >= max(max_epochs, most[name]) * (1 - 1e-9) for name in LANGUAGES]
    assert any(at_its_limit) or min(epochs.values()) == pytest.approx(1)


def test_without_shares_everything_is_seen_once_and_a_share_of_0_leaves_a_language_out() -> None:
    most = {"en": 1.0, "zh": 1.0}
    assert language_epochs({"en": 5, "zh": 9}, {}, 4, most) == {"en": 1, "zh": 1}
    assert language_epochs({"en": 5, "zh": 9}, {"en": 0, "zh": 2}, 4, most) == {"en": 0, "zh": 1}
