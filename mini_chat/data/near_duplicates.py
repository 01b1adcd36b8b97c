"""Near-duplicates of held-out documents, found among the training documents by the n-grams that they share.

A text and a copy of it that differs in case or white space have one hash and so are on one side of the split from the
start (`holdout_hash`). Here are the others: a training document is a near-duplicate if at least `overlap` of its
8-grams of tokens stand in one held-out document. Changing a share p of all words leaves (1 - p)^8 of them: with an
overlap of one half, 8% of the words may differ.

Of all 8-grams, the quarter with the lowest hashes is looked at: the same ones on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

GRAM = 8
SAMPLE_BITS = 2  # an n-gram is looked at if these first bits of its hash are 0
MIN_TOKENS = 64  # of shorter documents too few n-grams are looked at to say anything
CHUNK_TOKENS = 1 << 16  # hashed at once, so that all of it stays in the processor's cache
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplication loses nothing
_POWERS = tuple(np.uint64(pow(_FACTOR, power, 2**64)) for power in (1, 2, 4))
_LAST = np.uint64(0xD1B54A32D192ED03)


def gram_hashes(tokens: np.ndarray) -> np.ndarray:
    """Hashes, uint64 (n - 7,), of the 8-grams of tokens (n,): a polynomial of the tokens, mixed at the end."""
    if len(tokens) < GRAM:
        return np.zeros(0, np.uint64)
    hashes = tokens.astype(np.uint64)
    hashes += np.uint64(1)
    for width, factor in zip((1, 2, 4), _POWERS, strict=True):
        longer = hashes[:-width] * factor
        longer += hashes[width:]
        hashes = longer
    hashes ^= hashes >> np.uint64(32)
    hashes *= _LAST
    return hashes


def sampled(hashes: np.ndarray) -> np.ndarray:
    """Places of the n-grams that are looked at."""
    return np.flatnonzero(hashes < np.uint64(1 << (64 - SAMPLE_BITS)))


class NearDuplicates:
    """The n-grams of the held-out documents, ready to be found elsewhere.

    Args:
        documents: tokens of each held-out document.
        overlap: share of a document's n-grams in one of them that makes it a near-duplicate; 0 looks for none.
    """

    def __init__(self, documents: Iterable[np.ndarray], overlap: float) -> None:
        self.overlap = overlap
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, tokens in enumerate(documents if overlap else ()):
            found = gram_hashes(tokens)
            chosen = np.unique(found[sampled(found)])
            hashes.append(chosen)
            owners.append(np.full(len(chosen), number))
        everything = np.concatenate(hashes)
        order = np.argsort(everything, kind="stable")
        self.hashes, self.owners = everything[order], np.concatenate(owners)[order]
        # A table by a part of the hash tells most strangers at once: 1 in 16 of its places is taken.
        bits = min(24, max(10, (16 * max(1, len(self.hashes))).bit_length()))
        self._shift, self._mask = np.uint64(64 - SAMPLE_BITS - bits), np.uint64((1 << bits) - 1)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._slots(self.hashes)] = True

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return ((hashes >> self._shift) & self._mask).astype(np.int64)

    def find(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which of the documents of these lengths that lie in `tokens` are near-duplicates, bool (documents,)."""
        found = np.zeros(len(lengths), bool)
        if not len(self.hashes):
            return found
        ends = np.cumsum(lengths, dtype=np.int64)
        first = 0
        while first < len(lengths):
            begin = int(ends[first] - lengths[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + CHUNK_TOKENS, side="right")))
            chunk = slice(first, last)
            found[chunk] = self._find(tokens[begin : int(ends[last - 1])], ends[chunk] - begin, lengths[chunk])
            first = last
        return found

    def _find(self, tokens: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        hashes = gram_hashes(tokens)
        places = sampled(hashes)
        hashes = hashes[places]
        # Of each document the n-grams that lie within it: those that begin from its first token to its last but seven.
        low = np.searchsorted(places, ends - lengths)
        high = np.maximum(low, np.searchsorted(places, ends - (GRAM - 1)))
        seen = np.concatenate([[0], np.cumsum(self._table[self._slots(hashes)])])
        count = high - low
        likely = (lengths >= MIN_TOKENS) & (count > 0) & (seen[high] - seen[low] >= self.overlap * count)
        for document in np.flatnonzero(likely).tolist():
            likely[document] = self._is_near(hashes[low[document] : high[document]])
        return likely

    def _is_near(self, hashes: np.ndarray) -> bool:
        """Whether one held-out document has enough of these n-grams."""
        begin, end = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        counts = end - begin
        if not counts.any():
            return False
        places = np.repeat(begin - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        return bool(np.bincount(self.owners[places]).max() >= self.overlap * len(hashes))
