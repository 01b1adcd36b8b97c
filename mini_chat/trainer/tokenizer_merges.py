"""What a byte-level BPE has learnt: merges, first those that spell Chinese characters, then those of English.

A character made by merges costs what any token costs. The same character as an *added token* is searched for in
the text before BPE runs, which made llama.cpp's tokenizing 2.6 times slower. So every character is spelt by merges
at the lowest ranks, from its first byte on:

    字 = E5 AD 97:   (E5, AD) → the helper E5AD,   (E5AD, 97) → 字

Why no character can be hurt by its neighbours: UTF-8's lead bytes (C2 to F4) and continuation bytes (80 to BF) are
disjoint, and each of these merges has on its left a token that begins with a lead byte and on its right one
continuation byte. So nothing joins across the end of a character, nothing competes inside one, and since all of
them rank before the English merges, BPE has spelt every character before English begins.

English is therefore learnt on the symbols that this first step leaves (`to_symbols`), each shown to the trainer as
one letter: no merge is learnt twice, or learnt and then never reached. Words of several Chinese characters, where they
are wanted, are learnt in the same way on the characters; they share no symbol with English, so neither disturbs the
other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from mini_chat.data.token_bytes import byte_letters

MAX_TOKEN_SYMBOLS = 24
"""No learnt token is longer; without a bound the corpus' longest ruled lines become tokens."""

MAX_LETTERS = 5_000_000
"""Symbols of all distinct words that are learnt from, where no bound is given."""

LETTER_BYTES = 130
"""What the trainer takes for each of them, measured: 110."""

_FIRST_LETTER = 0xF0000  # Private use, plane 15: room for 65,534 symbols as letters that occur in no text.
_DELIMITER = "\0"
_FEED_CHARACTERS = 1 << 12  # the trainer gathers 256 such texts
_FEED_LIMIT = 400_000_000  # letters; half a minute


_LETTERS = byte_letters()


def to_letters(data: bytes) -> str:
    """How a byte-level vocabulary writes `data`: one printable letter a byte."""
    return "".join(_LETTERS[byte] for byte in data)


@dataclass
class MergeTable:
    """Tokens (bytes → id, without gaps) and merges in order of rank.

    Ids are the byte values, then the tokens in the order in which merges make them: id = 256 + rank, as tiktoken
    wants it, unless an English token is reached by two ways.
    """

    ids: dict[bytes, int] = field(default_factory=lambda: {bytes([byte]): byte for byte in range(256)})
    merges: list[tuple[bytes, bytes]] = field(default_factory=list)
    helpers: int = 0
    """Tokens that are the beginning of a character and no character."""
    characters: tuple[str, ...] = ()

    def add(self, left: bytes, right: bytes) -> None:
        """Append the merge of two tokens that exist."""
        assert left in self.ids and right in self.ids
        self.merges.append((left, right))
        self.ids.setdefault(left + right, len(self.ids))

    def to_symbols(self, character: str) -> list[bytes]:
        """What the merges of the characters (not the English ones) make of one character's bytes."""
        data = character.encode("utf-8")
        size = len(data)
        while data[:size] not in self.ids:
            size -= 1
        return [data[:size], *(bytes([byte]) for byte in data[size:])]


def character_merges(characters: Iterable[str], doubles: Iterable[str] = ()) -> MergeTable:
    """A table in which each of `characters` is a token: 256 bytes, then helpers, then the characters.

    Args:
        characters: any characters, ASCII ones excepted (they are bytes already).
        doubles: pairs of characters that become one token where they stand together.
    """
    encoded = {character: character.encode("utf-8") for character in characters}
    assert all(len(data) > 1 for data in encoded.values()), "an ASCII character is a token already"
    table = MergeTable(characters=tuple(encoded))
    # Shorter helpers first: a 4-byte character needs two, and the second is built on the first.
    for size in (2, 3):
        for helper in sorted({data[:size] for data in encoded.values() if len(data) > size}):
            table.add(helper[:-1], helper[-1:])
            table.helpers += 1
    for data in encoded.values():
        table.add(data[:-1], data[-1:])
    for double in doubles:
        left, right = (character.encode("utf-8") for character in double)
        table.add(left, right)
    return table


def learn_merges(
    table: MergeTable, counts: Counter[str], wanted: int, min_frequency: int, max_letters: int = MAX_LETTERS
) -> int:
    """Append up to `wanted` merges' tokens to `table`, learnt from words and their counts.

    The result depends on the counts alone, not on the order in which documents came.

    Args:
        counts: emptied, since its memory is needed.
        max_letters: symbols of all distinct words together that are learnt from, the most frequent words first.

    Returns:
        How many tokens were added: fewer than `wanted` if no pair occurs `min_frequency` times any more.
    """
    symbols = list(table.ids)
    spelt_counts = _spelt(table, counts)
    counts.clear()
    words = sorted(most_frequent(spelt_counts, max_letters).items())
    del spelt_counts
    if wanted <= 0 or not words:
        return 0
    symbol_of_letter = {chr(_FIRST_LETTER + number): symbol for number, symbol in enumerate(symbols)}
    words, letter_of_short = _shortened(words)
    words, min_frequency = _scaled(words, min_frequency)

    # The trainer takes no counts, so each word is fed as often as it occurs, parted by a letter that is in none.
    trainee = Tokenizer(BPE())
    trainee.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_DELIMITER)
    trainee.train_from_iterator(
        _repeated(words),
        BpeTrainer(
            vocab_size=len(letter_of_short) + wanted,
            min_frequency=min_frequency,
            max_token_length=MAX_TOKEN_SYMBOLS,
            special_tokens=[],
            show_progress=False,
        ),
    )
    before = len(table.ids)
    for left, right in _merges_of(trainee):
        table.add(*(b"".join(symbol_of_letter[letter_of_short[short]] for short in token) for token in (left, right)))
    return len(table.ids) - before


def most_frequent(counts: dict[str, int], max_letters: int) -> dict[str, int]:
    """The most frequent words whose letters together are not over `max_letters`; ties go by the word."""
    letters = sum(map(len, counts))
    if letters <= max_letters:
        return counts
    kept: dict[str, int] = {}
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        max_letters -= len(word)
        if max_letters < 0:
            break
        kept[word] = count
    return kept


def _spelt(table: MergeTable, counts: Counter[str]) -> dict[str, int]:
    """The words as the symbols that the characters' merges leave, a letter a symbol; those of one symbol left out."""
    letter_of_symbol = {symbol: chr(_FIRST_LETTER + token_id) for symbol, token_id in table.ids.items()}
    spelling: dict[str, str] = {}
    spelt: dict[str, int] = {}
    for word, count in counts.items():
        for character in word:
            if character not in spelling:
                spelling[character] = "".join(letter_of_symbol[symbol] for symbol in table.to_symbols(character))
        letters = "".join(spelling[character] for character in word)
        if len(letters) > 1:
            spelt[letters] = count
    return spelt


def _shortened(words: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """The words in the lowest letters that will do, in the same order, and what each of these stands for.

    A letter below U+0080 is one byte to the trainer, where those of plane 15 are four; nearly all text is such letters.
    """
    alphabet = sorted({letter for word, _ in words for letter in word})
    short = [chr(code) for code in range(1, len(alphabet) + 0x801) if not 0xD800 <= code < 0xE000][: len(alphabet)]
    table = str.maketrans(dict(zip(alphabet, short, strict=True)))
    return [(word.translate(table), count) for word, count in words], dict(zip(short, alphabet, strict=True))


def _scaled(words: list[tuple[str, int]], min_frequency: int) -> tuple[list[tuple[str, int]], int]:
    """The counts divided so that no more than `_FEED_LIMIT` letters are fed; as they are where that is enough."""
    total = sum((len(word) + 1) * count for word, count in words)
    if total <= _FEED_LIMIT:
        return words, min_frequency
    scaled = ((word, round(count * _FEED_LIMIT / total)) for word, count in words)
    return [(word, count) for word, count in scaled if count], max(1, round(min_frequency * _FEED_LIMIT / total))


def _repeated(words: list[tuple[str, int]]) -> Iterator[str]:
    for word, count in words:
        at_once = max(1, _FEED_CHARACTERS // (len(word) + 1))
        for start in range(0, count, at_once):
            yield _DELIMITER.join([word] * min(at_once, count - start))


def _merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
