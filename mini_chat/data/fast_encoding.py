"""Text → token ids at ten times and more the rate of `tokenizers`, with the same ids, and light enough for workers.

The work is done by fastokens (Rust): it reads the same `tokenizer.json`, matches the pre-tokenizer's pattern with a
compiled regular expression and remembers the ids of pieces that it has seen. Speed is worth nothing without the same
ids, so it is held to `tokenizers`, which is what `AutoTokenizer` runs, three times: by the tests on every line of real
text, at every start on a sample of what is awkward, and again on the first documents of the run. Where one id differs,
or the package is missing, `tokenizers` itself does the work, and a line says so.

Neither torch nor transformers is imported here: memory of all corpus processes together is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mini_chat.console import say
from mini_chat.data.encoding import check_text
from mini_chat.data.token_bytes import StreamDecoder, TokenBytes
from mini_chat.errors import UserError

CHECKED_DOCUMENTS = 64  # of the run's own, at most so many …
CHECKED_CHARACTERS = 200_000  # … and about so much text: a fraction of a second

AWKWARD = (
    "",
    "The cat sat on the mat; it's an old cat, and they'd've known: I'LL, WE'RE, 'S 'ſ don’t.",
    "小猫坐在垫子上。“安娜在哪里？”——她在花园里……（是的）、《书》！\n\n　　第二段，全角　空格。\r\n",
    "中文English混排123，with punctuation。，.cat，'s。\n  \n 的  的\t 的 \n的",
    "1234 5,678.90 ２０２４ ⅷ ½ ٣ x1y2",
    "a  b   c\t\td \n\n e\r\n\r\nf \r g   \n\t  h  ",
    "   leading\n   trailing   ",
    "    def f(x):\n        return {'a': [1, 2]}  # why\n\n\n",
    "👩‍👩‍👧‍👦 🇨🇳 e\u0301 ﬁ café naïve Zürich İ ß ŉ",
    "<|im_end|><|endoftext|> <|reserved_0|> <|im_start|>user\n",
    "\x00\x01\x1b[0m\x7f\x1c\x1f \x85 \xa0\u1680\u2028\u2029\u200b\ufeff\u3000",
    "𠮷𪚥㐀𰀀𱍐 กขค हिन्दी العربية עברית 한국어 にほんご ʰ ٠ 〇",
    "x" * 300 + "=" * 200 + " " * 100 + "字" * 100 + "\n" * 50,
)
"""What tokenizers have been wrong on: contractions, runs of white space before and after line ends, marks beside line
ends and quotes, numbers of every script, special tokens in text, controls, rare planes, long runs."""


class FastEncoder:
    """Encodes and decodes with a tokenizer of ours, as ordinary text: special tokens are spelt out, none is added.

    Args:
        tokenizer_json: the text of a `tokenizer.json`.
        where: what messages call it.
    """

    def __init__(self, tokenizer_json: str, where: str = "tokenizer.json") -> None:
        try:
            self._exact = Tokenizer.from_str(tokenizer_json)
            self.bytes = TokenBytes.from_json(tokenizer_json)
        except Exception as error:  # the Rust parser raises bare Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{where}: the tokenizer does not load ({reason}); make it again") from error
        self._exact.encode_special_tokens = True
        self._exact.no_truncation()
        self._exact.no_padding()
        self.where = where
        self.vocab_size = self._exact.get_vocab_size(with_added_tokens=True)
        self.dtype = np.dtype(np.uint16 if len(self.bytes.of_id) <= 1 << 16 else np.uint32)
        """Of the arrays of ids: 16 bits where every id fits them."""
        self._own_text_checked = False
        self._fast: Any = None
        try:
            self._fast = _fastokens(tokenizer_json)
        except ImportError:
            say(f"{where}: fastokens is not installed, so encoding runs at a tenth of its rate; pip install fastokens")
        except BaseException as error:
            self._give_up_fast(f"does not take this tokenizer ({_told(error)})")
        self._keep_fast_if_exact(AWKWARD)

    @classmethod
    def from_directory(cls, directory: Path | str) -> FastEncoder:
        """Of the tokenizer in a directory: one of its own, or a model's.

        Raises:
            UserError: there is none, or one that is damaged.
        """
        path = Path(directory, "tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{directory}: no readable tokenizer.json in it; give a directory that has a tokenizer or a model"
            ) from error
        return cls(text, str(directory))

    @property
    def is_fast(self) -> bool:
        """Whether the fast library encodes, rather than `tokenizers`."""
        return self._fast is not None

    def encode_documents(self, texts: Sequence[str], where: str = "text") -> list[np.ndarray]:
        """The ids of each text, `dtype` and read-only; those of `encoding.encode_text`.

        Args:
            where: messages call the texts `where[0]`, `where[1]`, …

        Raises:
            UserError: a lone surrogate, which no UTF-8 can write.
        """
        if not self._own_text_checked and texts:
            self._own_text_checked = True
            self._keep_fast_if_exact(_sample(texts), where)
        return self._encode(texts, where)

    def encode(self, text: str, where: str = "text") -> np.ndarray:
        """The ids of one text; see `encode_documents`, which is faster for many."""
        return self.encode_documents([text], where)[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; see `TokenBytes.decode`."""
        return self.bytes.decode(ids)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self.bytes)

    def _encode(self, texts: Sequence[str], where: str) -> list[np.ndarray]:
        if self._fast is not None:
            try:
                return self._encode_fast(texts, where)
            except UserError:
                raise
            except BaseException as error:
                self._give_up_fast(f"fails ({_told(error)})")
        return self._encode_exactly(texts, where)

    def _encode_fast(self, texts: Sequence[str], where: str) -> list[np.ndarray]:
        try:
            ids, ends = self._fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
        except UnicodeEncodeError:
            _refuse_surrogates(texts, where)
            raise
        flat = np.frombuffer(ids, "<u4").astype(self.dtype)
        flat.flags.writeable = False
        bounds = np.frombuffer(ends, "<u8").tolist()
        return [flat[start:end] for start, end in pairwise(bounds)]

    def _encode_exactly(self, texts: Sequence[str], where: str) -> list[np.ndarray]:
        _refuse_surrogates(texts, where)
        encodings = self._exact.encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.array(encoding.ids, self.dtype) for encoding in encodings]
        for array in arrays:
            array.flags.writeable = False
        return arrays

    def _keep_fast_if_exact(self, texts: Sequence[str], where: str = "text") -> None:
        """Give the fast library up if one id of `texts` differs, or it fails."""
        if self._fast is None:
            return
        pairs = zip(texts, self._encode_exactly(texts, where), self._encode(texts, where), strict=True)
        differing = next((text for text, right, ids in pairs if not np.array_equal(right, ids)), None)
        if differing is not None:
            self._give_up_fast(f"gives other ids for {differing[:40]!r}")

    def _give_up_fast(self, why: str) -> None:
        self._fast = None
        say(f"{self.where}: fastokens {why}; encoding by tokenizers instead, at a tenth of the rate")


def _fastokens(tokenizer_json: str) -> Any:
    """The fast library's tokenizer."""
    import fastokens

    tokenizer = fastokens.Tokenizer.from_json_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _told(error: BaseException) -> str:
    """The first line of what a library complains of; what is not its complaint is raised again.

    A panic in Rust arrives as a `BaseException`.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _sample(texts: Sequence[str]) -> list[str]:
    """Some texts from all over `texts`, long ones cut."""
    step = -(-len(texts) // CHECKED_DOCUMENTS)
    sample = texts[::step]
    most = CHECKED_CHARACTERS // len(sample)
    return [text[:most] for text in sample]


def _refuse_surrogates(texts: Sequence[str], where: str) -> None:
    for index, text in enumerate(texts):
        check_text(text, f"{where}[{index}]")
