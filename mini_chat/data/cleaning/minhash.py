"""MinHash signatures that tell near duplicates: Broder 1997, in the bands of Leskovec et al., *Mining of Massive
Datasets*, chapter 3, as FineWeb uses them (arXiv:2406.17557, 14 bands of 8).

The set of a document is its runs of 5 tokens, words in English and characters in Chinese. Of each hash function's
minimum 8 bits are kept (b-bit minwise hashing, arXiv:0910.3349): the 8 bytes of a band are one 64-bit key, so two
documents share a band's key with probability about J**8 (J: the Jaccard similarity of their sets), and the keys of all
bands, read byte by byte, still estimate J to about ±0.04.

Shapes: D documents, S shingles of all of them one after another, B bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from mini_chat.data.cleaning.tokens import I64, U64, Tokens, mix

SHINGLE_TOKENS = 5
ROWS = 8
"""Hash functions of a band: their bytes fill a 64-bit key."""

_BLOCK = 1 << 14  # shingles worked on at once: 64 KB stay in the nearest cache
_ODD = np.uint32(0x9E3779B1)

U32 = npt.NDArray[np.uint32]


def band_keys(tokens: Tokens, bands: int) -> U64:
    """The keys [D, B] of every document; a document without tokens has keys of zeros."""
    shingles_S, starts_D = shingles(tokens)
    minima = _minima(shingles_S, starts_D, bands * ROWS)
    # A minimum over many shingles is small: its upper bits say nothing, so all are mixed into the byte that is kept.
    low_DH = ((minima * _ODD) >> np.uint32(24)).astype(np.uint8)
    keys_DB = np.ascontiguousarray(low_DH).view(np.uint64)
    keys_DB[tokens.counts == 0] = 0
    return keys_DB


def shingles(tokens: Tokens) -> tuple[U32, I64]:
    """A 32-bit hash of each run of 5 tokens, and where each document's begin; a shorter document is one shingle."""
    counts_D = tokens.counts
    runs_D = np.maximum(counts_D - SHINGLE_TOKENS + 1, 1)
    ends_D = np.cumsum(runs_D)
    starts_D = ends_D - runs_D
    factors = mix(np.arange(1, SHINGLE_TOKENS + 1, dtype=np.uint64))
    hashes_T = np.concatenate((tokens.hashes_T, np.zeros(SHINGLE_TOKENS, np.uint64)))
    long_D = counts_D >= SHINGLE_TOKENS
    total = len(tokens.hashes_T)
    rolling_T = np.zeros(total + 1, np.uint64)
    for place in range(SHINGLE_TOKENS):
        rolling_T[:total] += hashes_T[place : place + total] * factors[place]
    # Token positions that begin a shingle: of long documents all but the last four, of short ones the first.
    within = np.arange(ends_D[-1] if len(ends_D) else 0) - np.repeat(starts_D, runs_D)
    values_S = rolling_T[np.minimum(np.repeat(tokens.starts_D1[:-1], runs_D) + within, total)]
    short = np.flatnonzero(~long_D)
    if len(short):
        sums = np.zeros(len(short), np.uint64)
        for place in range(SHINGLE_TOKENS - 1):
            there = place < counts_D[short]
            at = np.where(there, tokens.starts_D1[:-1][short] + place, 0)
            sums += np.where(there, hashes_T[at] * factors[place], np.uint64(0))
        values_S[starts_D[short]] = sums
    return (mix(values_S) >> np.uint64(32)).astype(np.uint32), starts_D


def similarity(keys_NB: U64, others_NB: U64) -> npt.NDArray[np.float64]:
    """Estimates of the Jaccard similarity of N pairs of documents from the bytes of their keys."""
    equal = (keys_NB ^ others_NB).view(np.uint8).reshape(len(keys_NB), ROWS * keys_NB.shape[1]) == 0
    chance = 1 / 256  # two different minima agree in their byte
    return np.maximum((equal.mean(axis=1) - chance) / (1 - chance), 0.0)


def _minima(shingles_S: U32, starts_D: I64, functions: int) -> U32:
    """Minimum [D, functions] of each document's shingles under each of the hash functions a·x + b modulo 2**32."""
    factors, offsets = _functions(functions)
    minima = np.full((len(starts_D), functions), 0xFFFFFFFF, np.uint32)
    block = np.empty(_BLOCK, np.uint32)
    for start in range(0, len(shingles_S), _BLOCK):
        part = shingles_S[start : start + _BLOCK]
        values = block[: len(part)]
        first = int(np.searchsorted(starts_D, start, "right")) - 1
        last = int(np.searchsorted(starts_D, start + len(part), "left"))
        inner = np.maximum(starts_D[first:last] - start, 0)
        for function in range(functions):
            np.multiply(part, factors[function], out=values)
            values += offsets[function]
            found = np.minimum.reduceat(values, inner) if last - first > 1 else values.min()
            np.minimum(minima[first:last, function], found, out=minima[first:last, function])
    return minima


@cache
def _functions(count: int) -> tuple[U32, U32]:
    """Odd factors and offsets, the same on every machine."""
    values = mix(np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    values32 = (values >> np.uint64(32)).astype(np.uint32)
    return values32[:count] | np.uint32(1), values32[count:]
