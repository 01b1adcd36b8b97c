"""Text that arrives in pieces: tokens into whole characters, characters into whole lines of a terminal."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ByteVocabulary:
    """The bytes behind every token of a byte-level tokenizer.

    Special tokens have no bytes: they are marks, not text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._bytes_of_id: dict[int, bytes] = {}
        for token, token_id in tokenizer.get_vocab().items():
            try:
                self._bytes_of_id[token_id] = bytes(byte_of[letter] for letter in token)
            except KeyError:
                self._bytes_of_id[token_id] = token.encode("utf-8", "replace")
        for token_id, added in tokenizer.added_tokens_decoder.items():  # written as they are, not in byte letters
            self._bytes_of_id[token_id] = b"" if added.special else added.content.encode("utf-8")
        self.longest = max(len(piece) for piece in self._bytes_of_id.values())

    def __getitem__(self, token_id: int) -> bytes:
        return self._bytes_of_id.get(token_id, b"")  # the embedding may be padded past the vocabulary


class IncrementalDecoder:
    """Turns tokens into text one at a time and holds back the bytes of a character until it is whole.

    Bytes that can never become a character come out as U+FFFD, as in the tokenizer's own `decode`.
    """

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; often one, sometimes none."""
        return self._decoder.decode(self._vocabulary[token_id])

    def finish(self) -> str:
        """What an answer that ends in the middle of a character leaves: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


NO_LINE_START = frozenset("，。、；：？！）》」』】〕〉”’…—～·％,.;:?!)]}%")
NO_LINE_END = frozenset("（《「『【〔〈“‘([{")
ZERO_WIDTH_JOINER = "\u200d"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without the control characters that could command a terminal; newlines stay, a tab is 4 spaces."""
    return CONTROL.sub("", text).replace("\t", "    ")


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between two neighbouring characters, neither of them a space."""
    if after in NO_LINE_START or before in NO_LINE_END or before == ZERO_WIDTH_JOINER or cell_len(after) == 0:
        return False
    return cell_len(before) == 2 or cell_len(after) == 2


class LineWrapper:
    """Wraps a stream of text at the width of a terminal, as soon as each word is whole.

    English breaks at spaces; Chinese between any two characters, but no line begins with a closing mark or
    ends with an opening one. A word longer than a line is cut.

    Args:
        width: returns the terminal's width in cells; asked again for every word, so a resize is followed.
        column: cells already used on the first line.
    """

    def __init__(self, width: Callable[[], int], column: int = 0) -> None:
        self._width = width
        self._column = column
        self._spaces = ""
        self._word = ""

    def push(self, text: str) -> str:
        """What can be printed now: everything up to the last word that may still grow."""
        out = []
        for character in printable(text):
            if character == "\n":
                out.append(self._end_word() + "\n")
                self._column, self._spaces = 0, ""
            elif character == " ":
                out.append(self._end_word())
                self._spaces += " "
            else:
                if self._word and (may_break(self._word[-1], character) or self._word_fills_a_line()):
                    out.append(self._end_word())
                self._word += character
        return "".join(out)

    def finish(self) -> str:
        """The last word."""
        return self._end_word()

    def _word_fills_a_line(self) -> bool:
        return cell_len(self._word) >= self._width() - 1

    def _end_word(self) -> str:
        if not self._word:
            return ""
        word, self._word = self._word, ""
        spaces, self._spaces = self._spaces, ""
        if self._column + len(spaces) + cell_len(word) > self._width() and self._column:
            self._column = cell_len(word)
            return "\n" + word
        self._column += len(spaces) + cell_len(word)
        return spaces + word
