"""Counting what a tokenizer is learnt from, in a set amount of memory whatever the size of the corpus.

What fills the memory of tokenizer trainers on Chinese is the pre-tokenizer: it takes a whole clause as one word, and
nearly every clause is new (716,000 distinct "words" in 31 MB). So while counting, every Chinese character stands alone
(or, where words of several characters are to be learnt, up to four of them stand together), and what is counted is
bounded: past so many distinct words the rare ones are forgotten, and by how much counts can be too low for it is known.

The pre-tokenizer that is saved stays Qwen2's: what is merged within these smaller words is merged within its larger
ones too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import regex

from mini_chat.data.encoding import ROLES, check_text
from mini_chat.data.hanzi import FULL_WIDTH_MARKS, HAN_CLASS, SHARED_MARKS, is_han
from mini_chat.parallel import available_cores, in_batches, ordered_map

# As in transformers' Qwen2Tokenizer and under llama.cpp's LLAMA_VOCAB_PRE_TYPE_QWEN2. Not ours to improve.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MAX_PIECE_CHARACTERS = 64
"""Longer pieces (base64, rows of dashes) teach nothing about a language and are not counted."""

MAX_HAN_CHARACTERS = 4
"""Of a Chinese word; four are enough for nearly all of them, idioms among them."""

BATCH_CHARACTERS = 250_000  # counted at once
SLICE_CHARACTERS = 1 << 18  # the pieces of so much text are held at once; a cut every so often changes no count

# Measured, with reserve: a process of this stage without its counts, one more for each worker, a counted word while
# the table that holds it grows.
BASE_BYTES = 130_000_000
WORKER_BYTES = 75_000_000
WORD_BYTES = 250
PARALLEL_FROM_CHARACTERS = 20_000_000  # below, starting processes takes longer than they save


@dataclass
class WordCounter:
    """How often each word occurs, in bounded memory.

    Past `max_words` distinct words so much is subtracted from every count that at most half of them stay above zero
    (Misra and Gries, 1982; mergeable as in Agarwal et al., 2012). So no count is ever too high, and none is too low by
    more than `forgotten`, the sum of what was subtracted.
    """

    max_words: int
    counts: Counter[str] = field(default_factory=Counter)
    forgotten: int = 0

    def add(self, counts: Mapping[str, int]) -> None:
        """Count words; the order in which they come may matter to what is forgotten."""
        self.counts.update(counts)
        if len(self.counts) > self.max_words:
            self._forget()

    def _forget(self) -> None:
        values = np.fromiter(self.counts.values(), np.int64, len(self.counts))
        place = len(values) - 1 - self.max_words // 2
        subtracted = int(np.partition(values, place)[place])
        self.forgotten += subtracted
        self.counts = Counter({word: n - subtracted for word, n in self.counts.items() if n > subtracted})


class Wanted(NamedTuple):
    """What is counted of Chinese text; of the rest, words always."""

    characters: bool = False
    words: bool = False
    english: bool = False
    """The words of other scripts in it."""


@dataclass
class CorpusCounts:
    """What there is in a corpus."""

    english: WordCounter
    chinese: WordCounter
    characters: Counter[str] = field(default_factory=Counter)
    """Of Chinese text, every character."""
    pieces: int = 0
    """Words that English is learnt from, as the pre-tokenizer cuts them."""
    documents: int = 0
    size_bytes: int = 0

    @property
    def forgotten(self) -> int:
        """By how much a word's count may be too low."""
        return max(self.english.forgotten, self.chinese.forgotten)


class Text(NamedTuple):
    """A document as it is counted."""

    text: str
    is_chinese: bool
    where: str
    """What a message calls it."""


def count_corpus(texts: Iterable[Text], wanted: Wanted, memory_bytes: int, processes: int = 1) -> CorpusCounts:
    """Count the documents' words; the same counts whatever the number of processes.

    Args:
        memory_bytes: of all processes together. Distinct words are bounded by it.
        processes: 0 for one per core; fewer are started where memory is short, one where there is little text.

    Raises:
        UserError: a lone surrogate.
    """
    max_words = max(1000, (memory_bytes - BASE_BYTES) // 2 // WORD_BYTES)
    if wanted.words:
        max_words //= 2  # two tables
    processes = min(processes or available_cores(), max(1, (memory_bytes - BASE_BYTES) // 2 // WORKER_BYTES))
    total = CorpusCounts(WordCounter(max_words), WordCounter(max_words))
    for counts in _counted(in_batches(texts, lambda text: len(text.text), BATCH_CHARACTERS), wanted, processes):
        total.english.add(counts.english)
        total.chinese.add(counts.chinese)
        total.characters.update(counts.characters)
        total.pieces += counts.pieces
        total.documents += counts.documents
        total.size_bytes += counts.size_bytes
    # Every turn of every dialogue has one of these in its header; raw text would leave "assistant" in three parts.
    if total.pieces:
        for role in ROLES:
            total.english.counts[role] += total.pieces // 1000
    return total


class BatchCounts(NamedTuple):
    """What there is in a batch of documents."""

    english: dict[str, int]
    chinese: dict[str, int]
    characters: dict[str, int]
    pieces: int
    documents: int
    size_bytes: int


def _counted(batches: Iterator[list[Text]], wanted: Wanted, processes: int) -> Iterator[BatchCounts]:
    """Each batch's counts, in order: the first ones counted here, more of them on processes."""
    count = partial(_count_batch, wanted)
    for number, batch in enumerate(batches, 1):
        yield count(batch)
        if processes > 1 and number * BATCH_CHARACTERS >= PARALLEL_FROM_CHARACTERS:
            break
    yield from ordered_map(partial(partial, _count_batch, wanted), batches, processes)


_PIECES = regex.compile(QWEN2_PATTERN)
_HAN_WORDS = regex.compile(f"[{HAN_CLASS}]{{2,{MAX_HAN_CHARACTERS}}}")


def _count_batch(wanted: Wanted, batch: list[Text]) -> BatchCounts:
    pieces: Counter[str] = Counter()
    chinese: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    size_bytes = 0
    for text, is_chinese, where in batch:
        size_bytes += len(check_text(text, where).encode())
        for start in range(0, len(text), SLICE_CHARACTERS):
            part = text[start : start + SLICE_CHARACTERS]
            if wanted.english or not is_chinese:
                pieces.update(_PIECES.findall(part))
            if wanted.characters and is_chinese:
                characters.update(part)
            if wanted.words and is_chinese:
                chinese.update(_HAN_WORDS.findall(part))
    english: Counter[str] = Counter()
    n_pieces = 0
    for piece, count in pieces.items():
        if len(piece) > MAX_PIECE_CHARACTERS:
            continue
        n_pieces += count
        if piece.isascii():
            english[piece] += count
        else:
            for word in english_words(piece):
                if word:
                    english[word] += count
    return BatchCounts(dict(english), dict(chinese), dict(characters), n_pieces, len(batch), size_bytes)


def english_words(piece: str) -> Iterator[str]:
    """The parts of a piece that English merges may be learnt from.

    Chinese characters and full-width marks are cut out: their tokens stay whole, and a Chinese clause never becomes a
    "word" of its own. Two shared marks that stand together are parted, so that each stays a token beside the other.
    """
    word = ""
    for character in piece:
        if is_han(character) or character in FULL_WIDTH_MARKS:
            yield word
            word = ""
        elif word and word[-1] in SHARED_MARKS and character in SHARED_MARKS:
            yield word
            word = character
        else:
            word += character
    yield word
