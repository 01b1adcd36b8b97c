"""Chinese characters and words as numbers, for many documents at once.

Everything that counts words, compares documents or looks for repetition asks the same of a text: where its tokens are.
A token is a Chinese character, or a run of letters and digits; case, full-width forms, punctuation and white space make
no difference. All of it is arithmetic on arrays of code points, some 60 MB/s on a core where a loop does 5.

Shapes: D documents, T tokens of all of them one after another, C classes of characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mini_chat.data.hanzi import is_han

SPACE, HAN, LATIN, DIGIT, MARK, FOREIGN = range(6)
"""Classes of characters: white space and controls, Chinese characters, Latin letters, digits, punctuation and symbols,
letters of other scripts."""
CLASSES = 6

PASS_CHARACTERS = 1 << 16  # worked on at once: the arrays of a pass stay in the processor's cache
_TABLE_SIZE = 0x20001  # planes 0 and 1; its last entry stands for the planes behind, whose letters are Chinese
_BASE = 0x9E3779B97F4A7C15
_BITS = 21  # of a counter in a packed sum: a pass has fewer than 2 million characters

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokens of D documents."""

    hashes_T: U64
    """64 well-mixed bits for each token; equal tokens have equal ones."""
    lengths_T: npt.NDArray[np.int32]
    """Characters of each token."""
    kinds_T: npt.NDArray[np.uint8]
    """Class of each token's first character."""
    starts_D1: I64
    """Where each document's tokens begin; the last entry is T."""
    characters_DC: I64
    """Characters of each class."""

    @property
    def counts(self) -> I64:
        """Tokens of each document [D]."""
        return np.diff(self.starts_D1)

    def chosen(self, which_D: npt.NDArray[np.bool_]) -> Tokens:
        """The tokens of some of the documents."""
        if which_D.all():
            return self
        counts = self.counts
        at = np.repeat(which_D, counts)
        starts_D1 = np.concatenate(([0], np.cumsum(counts[which_D])))
        return Tokens(self.hashes_T[at], self.lengths_T[at], self.kinds_T[at], starts_D1, self.characters_DC[which_D])


def tokenize(texts: Sequence[str]) -> Tokens:
    """The tokens of `texts`.

    Memory is 13 bytes a token and a few MB: a long document is worked on in pieces, cut at spaces where there are any,
    at the same places whatever stands beside it.
    """
    hashes, lengths, kinds, characters = [], [], [], np.zeros((len(texts), CLASSES), np.int64)
    counts_D = np.zeros(len(texts), np.int64)
    for documents, pieces in _passes(texts):
        hashes_T, lengths_T, kinds_T, counts_P, characters_PC = _tokenize_pass(pieces)
        hashes.append(hashes_T)
        lengths.append(lengths_T)
        kinds.append(kinds_T)
        np.add.at(counts_D, documents, counts_P)
        np.add.at(characters, documents, characters_PC)
    starts_D1 = np.concatenate(([0], np.cumsum(counts_D)))
    return Tokens(
        np.concatenate(hashes or [np.zeros(0, np.uint64)]),
        np.concatenate(lengths or [np.zeros(0, np.int32)]),
        np.concatenate(kinds or [np.zeros(0, np.uint8)]),
        starts_D1,
        characters,
    )


def mix(values: npt.NDArray[np.uint64]) -> U64:
    """Spread every bit over all (the finaliser of splitmix64, doi:10.1145/2660193.2660195)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _passes(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Documents' numbers and pieces that are worked on together."""
    documents: list[int] = []
    pieces: list[str] = []
    characters = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            if characters + len(piece) > PASS_CHARACTERS and pieces:
                yield documents, pieces
                documents, pieces, characters = [], [], 0
            documents.append(number)
            pieces.append(piece)
            characters += len(piece) + 1
    if pieces:
        yield documents, pieces


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PASS_CHARACTERS:
        end = start + PASS_CHARACTERS
        space = text.rfind(" ", end - PASS_CHARACTERS // 8, end)
        end = space if space > 0 else end
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _tokenize_pass(pieces: list[str]) -> tuple[U64, npt.NDArray[np.int32], npt.NDArray[np.uint8], I64, I64]:
    """Hashes, lengths, kinds of the tokens, and of each piece the number of tokens and of characters by class."""
    table, folded, packed_low, packed_high = _tables()
    joined = ("\n".join(pieces) + "\n").encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, np.uint32)
    index = np.minimum(codes, _TABLE_SIZE - 1)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces)) + 1
    ends_P = np.cumsum(sizes)
    starts_P = ends_P - sizes

    classes = table[index]
    characters_PC = np.empty((len(pieces), CLASSES), np.int64)
    for first, packed in ((0, packed_low), (3, packed_high)):
        sums = np.add.reduceat(packed[classes], starts_P)
        for place in range(3):
            characters_PC[:, first + place] = (sums >> np.uint64(_BITS * place)) & np.uint64((1 << _BITS) - 1)
    characters_PC[:, SPACE] -= 1  # the line end that parts the pieces

    han = classes == HAN
    word = (classes == LATIN) | (classes == DIGIT) | (classes == FOREIGN)
    first = han | word
    last = first.copy()
    first[1:] &= han[1:] | ~word[:-1]
    last[:-1] &= han[:-1] | ~word[1:]
    begins, ends = np.flatnonzero(first), np.flatnonzero(last) + 1

    letters = folded[index].astype(np.uint64)
    if int(codes.max()) >= _TABLE_SIZE - 1:
        letters = np.where(codes >= _TABLE_SIZE - 1, codes, letters).astype(np.uint64)
    powers, inverses = (values[: len(codes)] for values in _powers())
    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(letters * powers, out=prefix[1:])
    hashes_T = mix((prefix[ends] - prefix[begins]) * inverses[begins])
    counts_P = np.diff(np.searchsorted(begins, np.concatenate((starts_P, ends_P[-1:]))))
    return hashes_T, (ends - begins).astype(np.int32), classes[begins], counts_P, characters_PC


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32], U64, U64]:
    """Class and folded form of each character of planes 0 and 1, and of each class its place in two packed sums."""
    table = np.fromiter(map(_class_of, map(chr, range(_TABLE_SIZE))), np.uint8, _TABLE_SIZE)
    folded = np.fromiter(map(_fold, range(_TABLE_SIZE)), np.uint32, _TABLE_SIZE)
    places = np.uint64(1) << (np.arange(3, dtype=np.uint64) * np.uint64(_BITS))
    nothing = np.zeros(3, np.uint64)
    return table, folded, np.concatenate((places, nothing)), np.concatenate((nothing, places))


def _class_of(character: str) -> int:
    if is_han(character) or character in "〇々":
        return HAN
    category = unicodedata.category(character)
    if category == "Nd":
        return DIGIT
    if category[0] in "LM":
        code = ord(character)
        latin = code < 0x250 or 0x1E00 <= code < 0x1F00 or 0xFF21 <= code <= 0xFF5A
        return LATIN if latin else FOREIGN
    return SPACE if category[0] in "ZC" else MARK


def _fold(code: int) -> int:
    if 0xFF01 <= code <= 0xFF5E:
        code -= 0xFEE0
    lower = chr(code).lower()
    return ord(lower) if len(lower) == 1 else code


@cache
def _powers() -> tuple[U64, U64]:
    """Powers of the base of the rolling hash and of its inverse, modulo 2**64, for every place in a pass."""
    powers, inverses = (np.full(2 * PASS_CHARACTERS, base, np.uint64) for base in (_BASE, pow(_BASE, -1, 1 << 64)))
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)
