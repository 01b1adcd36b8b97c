"""From a document to what is kept of it: mended, judged, and signed for finding its duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mini_chat.data.cleaning.lines import remove_frame_lines, remove_repeated_lines
from mini_chat.data.cleaning.minhash import band_keys
from mini_chat.data.cleaning.normalise import (
    collapse_white_space,
    remove_empty_brackets,
    remove_html,
    remove_invisible,
    unify_characters,
)
from mini_chat.data.cleaning.personal_data import mask_personal_data
from mini_chat.data.cleaning.quality import judge
from mini_chat.data.cleaning.tokens import U64, mix, tokenize

if TYPE_CHECKING:
    from mini_chat.config import Clean

RULES = 1
"""Version of everything here that decides about a document; another one, and all is cleaned again."""

EMPTY_AFTER = "nothing left"
"""Why a document is dropped of which mending leaves nothing."""

EXACT_KEYS = 2
"""64-bit numbers of the hash that tells exact duplicates: 128 bits of BLAKE2b."""


class Cleaned(NamedTuple):
    """What became of a document."""

    text: str
    """Mended, whether or not it is kept."""
    changes: Mapping[str, tuple[str, str]]
    """What was changed in it, each with the text before and after it was."""
    reason: str | None
    """Why it is dropped; None: it is kept."""


class Cleaner:
    """Mends and judges documents by the settings; a function of the document and the settings alone."""

    def __init__(self, settings: Clean, everywhere: Container[int] = frozenset()) -> None:
        self.settings, self.everywhere = settings, everywhere
        self._steps = list(_steps(settings, everywhere))

    def __call__(self, texts: Sequence[str], languages: Sequence[str]) -> tuple[list[Cleaned], U64]:
        """The documents' fates, and the duplicate keys [kept documents, keys] of those that are kept."""
        mended = [self.mend(text) for text in texts]
        tokens = tokenize([text for text, _ in mended])
        verdicts = judge([text for text, _ in mended], languages, tokens, self.settings)
        cleaned = [
            Cleaned(text, changes, verdict if text else EMPTY_AFTER)
            for (text, changes), verdict in zip(mended, verdicts, strict=True)
        ]
        kept = np.array([document.reason is None for document in cleaned], bool)
        if self.settings.dedup == "off":
            return cleaned, np.zeros((int(kept.sum()), 0), np.uint64)
        keys = exact_keys([document.text for document in cleaned if document.reason is None])
        if self.settings.dedup == "near":
            signed = tokens.chosen(kept)
            bands = band_keys(signed, self.settings.bands)
            # A text of nothing but marks has no signature: it is near to none but its copies.
            bare = signed.counts == 0
            bands[bare] = mix(np.add.outer(keys[bare, 0], np.arange(bands.shape[1], dtype=np.uint64)))
            keys = np.concatenate((keys, bands), axis=1)
        return cleaned, keys

    def mend(self, text: str) -> tuple[str, dict[str, tuple[str, str]]]:
        """The mended text, and what was changed."""
        changes: dict[str, tuple[str, str]] = {}
        for name, step in self._steps:
            mended = step(text)
            if mended is not text and mended != text:
                changes.setdefault(name, (text, mended))
                text = mended
        return text, changes


def exact_keys(texts: Sequence[str]) -> U64:
    """128 bits of BLAKE2b of each text, as two numbers [D, 2]."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join([hashlib.blake2b(data, digest_size=8 * EXACT_KEYS).digest() for data in encoded])
    return np.frombuffer(digests, np.uint64).reshape(-1, EXACT_KEYS)


def _steps(settings: Clean, everywhere: Container[int]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """What is mended, in order. White space comes after markup, whose removal leaves some."""
    if settings.html:
        yield "HTML", remove_html
    yield "Unicode form", lambda text: unify_characters(text, settings.unicode)
    yield "invisible characters", remove_invisible
    if settings.brackets:
        yield "empty brackets", remove_empty_brackets
    yield "white space", collapse_white_space
    if settings.frame_lines:
        yield "lines of a frame", remove_frame_lines
    if settings.repeated_lines or everywhere:
        yield "repeated lines", lambda text: remove_repeated_lines(text, everywhere, within=settings.repeated_lines)
    if settings.personal_data == "mask":
        yield "personal data", mask_personal_data
    yield "white space", collapse_white_space
