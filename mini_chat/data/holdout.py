"""Which documents are held out: a function of the text alone, decided before anything is trained."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Compatibility characters of ordinary Chinese text and what NFKC makes of each; see `_normal`.
_FULL_WIDTH = {
    "，": ",",
    "！": "!",
    "？": "?",
    "：": ":",
    "；": ";",
    "（": "(",
    "）": ")",
    "％": "%",
    "～": "~",
    "．": ".",
    "－": "-",
    "…": "...",
    "\u3000": " ",
}


def holdout_share(key: str, share: float) -> bool:
    """Whether what `key` names belongs to the held-out `share` (0 to 1) of everything.

    The key (a document's text; a dialogue's or a pair's prompt, so that one prompt is never on both sides) is hashed by
    `holdout_hash`, and held out if the hash lies in the lowest `share` of its range. No seed, no state, no order: the
    same text is on the same side in every run, on every machine, in however many copies that differ in case or white
    space; and what a small share holds out, every larger share holds out too.

    Raises:
        ValueError: `share` is not within 0 to 1.
    """
    return holdout_hash(key) < holdout_limit(share)


def holdout_hash(key: str) -> int:
    """64 bits of BLAKE2b of the key in NFKC, lower case and single spaces."""
    normal = " ".join(_normal(key).casefold().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def holdout_limit(share: float) -> float:
    """The value that the hashes of the held-out `share` lie below.

    Raises:
        ValueError: `share` is not within 0 to 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; it must lie within 0 and 1")
    return share * 2**64


# What lies between ideographs: these NFKC leaves as they are, and nothing is composed with them on either side.
_BETWEEN_IDEOGRAPHS = re.compile("[^\u4e00-\u9fff]+")


def _normal(text: str) -> str:
    """NFKC of the text, without its pace on Chinese: 12 MB/s where one full-width comma makes it go the long way.

    NFKC first replaces every compatibility character by what stands for it. To replace the common ones beforehand
    changes nothing in the result, and leaves most texts with nothing to do, which is seen at once; of the others, only
    what lies between the ideographs is gone through.
    """
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        return text
    for mark, plain in _FULL_WIDTH.items():
        text = text.replace(mark, plain)
    if unicodedata.is_normalized("NFKC", text):
        return text
    return _BETWEEN_IDEOGRAPHS.sub(lambda between: unicodedata.normalize("NFKC", between[0]), text)
