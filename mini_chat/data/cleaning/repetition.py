"""Repetition within a document, by the rules of Gopher (arXiv:2112.11446, appendix A.1.1, table A1).

The phrases are runs of tokens: words in English, characters in Chinese, where MAP-CC's looser limits hold
(arXiv:2404.04167, and the filter published with it), since runs of characters come again more easily.

Shapes: D documents, T tokens of all of them one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mini_chat.data.cleaning.tokens import I64, U64, Tokens, mix

TOP_SHARES = {2: 0.20, 3: 0.18, 4: 0.16}
"""Most characters in the phrase of so many tokens that takes up most, as a share."""
REPEATED_SHARES = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Most characters in phrases of so many tokens that occurred before."""
REPEATED_SHARE_ZH = 0.60
"""The same for Chinese, whatever the length."""
LINE_SHARE, LINE_CHARACTER_SHARE = 0.30, 0.20
"""Most lines (or paragraphs) that occurred before, and most characters in them."""

CHINESE_WORD = 2
"""Characters of a word of Chinese, on average."""
MAX_TOKENS = 1 << 19
"""Tokens of a document that are looked at: of longer ones, the first."""

_PLACE_BITS, _HASH_BITS = 23, 32  # the other 9 are the document's: there are at most 512 in a batch

Bools = npt.NDArray[np.bool_]


def repeats_phrases(tokens: Tokens, is_page_D: Bools, is_chinese_D: Bools, min_tokens: int = 20) -> Bools:
    """Whether phrases take up too much of each document [D].

    A text shorter than a page is held only to MAP-CC's limit for phrases of 5, and from `min_tokens` on: two equal
    words are a fifth of a sentence.
    """
    found_D = np.zeros(len(is_page_D), bool)
    page = np.flatnonzero(is_page_D & (tokens.counts > 0))
    if len(page):
        found_D[page] = _page_repeats(_Phrases(tokens, page, is_chinese_D), is_chinese_D[page])
    shorter = np.flatnonzero(~is_page_D & (tokens.counts >= min_tokens))
    if len(shorter):
        found_D[shorter] = _Phrases(tokens, shorter, is_chinese_D).repeated_share(5) > REPEATED_SHARE_ZH
    return found_D


def _page_repeats(phrases: _Phrases, chinese: Bools) -> Bools:
    repeated = phrases.repeated_share(5)
    over = repeated > np.where(chinese, REPEATED_SHARE_ZH, REPEATED_SHARES[5])
    # What a longer phrase covers, its first 5 tokens and the next ones cover too: the share falls with the length.
    if (~chinese & ~over & (repeated > REPEATED_SHARES[10])).any():
        for length in range(6, 11):
            over |= ~chinese & (phrases.repeated_share(length) > REPEATED_SHARES[length])
    over |= phrases.has_top(2, TOP_SHARES[2])
    # Of a phrase of 3 or 4, one half (two tokens) comes as often at least and takes up half as much at least.
    if (~over & phrases.has_top(2, min(TOP_SHARES.values()) / 2)).any():
        for length in (3, 4):
            over |= phrases.has_top(length, TOP_SHARES[length])
    return over


def repeats_lines(lines: Sequence[str]) -> bool:
    """Whether too many lines (or paragraphs) are copies of earlier ones."""
    counts = Counter(lines)
    copies = len(lines) - len(counts)
    if not copies:
        return False
    copied = sum(len(line) * (count - 1) for line, count in counts.items())
    return copies > LINE_SHARE * len(lines) or copied > LINE_CHARACTER_SHARE * sum(map(len, lines))


class _Phrases:
    """Runs of tokens in some of the documents.

    A run is one 64-bit number: document, hash, place. Sorted, equal runs stand together in the order of their places,
    and a sort of numbers is many times faster than one of indices.
    """

    def __init__(self, tokens: Tokens, chosen: I64, is_chinese_D: Bools) -> None:
        assert len(chosen) <= 1 << (64 - _PLACE_BITS - _HASH_BITS)
        counts = np.minimum(tokens.counts[chosen], MAX_TOKENS)
        self.starts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(self.starts, counts)
        at = np.repeat(tokens.starts_D1[:-1][chosen], counts) + within
        self.documents = len(chosen)
        self.hashes_T, self.lengths_T = tokens.hashes_T[at], tokens.lengths_T[at].astype(np.int64)
        # An English name among Chinese characters would outweigh a sentence: it counts as a Chinese word.
        longest = np.where(is_chinese_D[chosen], CHINESE_WORD, np.iinfo(np.int64).max)
        np.minimum(self.lengths_T, np.repeat(longest, counts), out=self.lengths_T)
        self.left_T = np.repeat(counts, counts) - within
        self.document_T = np.repeat(np.arange(len(chosen), dtype=np.uint64), counts)
        self.characters = np.add.reduceat(self.lengths_T, self.starts)
        self.ends_T = np.concatenate(([0], np.cumsum(self.lengths_T)))
        self._sorted: dict[int, tuple[I64, I64]] = {}

    def repeated_share(self, length: int) -> npt.NDArray[np.float64]:
        """Share of each document's characters that lie in a run of so many tokens which occurred before."""
        places, begins = self._groups(length)
        later = np.ones(len(places), bool)
        later[begins] = False
        first = places[later]
        total = len(self.hashes_T) + 1
        edges = np.bincount(first, minlength=total) - np.bincount(first + length, minlength=total)
        covered = np.cumsum(edges[:-1]) > 0
        return np.add.reduceat(np.where(covered, self.lengths_T, 0), self.starts) / self.characters

    def has_top(self, length: int, share: float) -> Bools:
        """Whether one run of so many tokens takes up more than a share of each document's characters."""
        places, begins = self._groups(length)
        times = np.diff(np.concatenate((begins, [len(places)])))
        several = times > 1
        example, times = places[begins[several]], times[several]
        document = self.document_T[example].astype(np.int64)
        size = self.ends_T[example + length] - self.ends_T[example]
        found = np.zeros(self.documents, bool)
        found[document[times * size > share * self.characters[document]]] = True
        return found

    def _groups(self, length: int) -> tuple[I64, I64]:
        """Places of runs of so many tokens, equal ones together and in order, and where each group begins."""
        if length not in self._sorted:
            at = np.flatnonzero(self.left_T >= length)
            factors: U64 = mix(np.arange(1, length + 1, dtype=np.uint64))
            hashes = np.zeros(len(at), np.uint64)
            for place in range(length):
                hashes += self.hashes_T[at + place] * factors[place]
            keys = self.document_T[at] << np.uint64(_PLACE_BITS + _HASH_BITS)
            keys |= (mix(hashes) >> np.uint64(64 - _HASH_BITS)) << np.uint64(_PLACE_BITS)
            keys |= at.astype(np.uint64)
            keys.sort()
            places = (keys & np.uint64((1 << _PLACE_BITS) - 1)).astype(np.int64)
            keys >>= np.uint64(_PLACE_BITS)
            begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))[: len(at)]
            self._sorted[length] = places, begins
        return self._sorted[length]
