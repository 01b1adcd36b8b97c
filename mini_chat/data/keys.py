"""The key of each document, and with it the order of everything.

A key is 64 bits, a function of the seed and of where the document stands (source, file, number), and of nothing else:
not of memory, processes, machines, nor of who computes it. Shuffling is sorting by key. Keys are of places and not of
texts, so that copies of one text do not come to lie side by side.

BLAKE2b of (seed, source, file) begins a stream of SplitMix64 (doi:10.1145/2660193.2660195); a document takes the value
at its number. That mixing is one-to-one, so no two documents of a file have the same key.
"""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64
# Set what is drawn by a key apart from the order: a part of a source, then a part of an epoch.
WEIGHT, EPOCH = 0x5851F42D4C957F2D, 0xDA942042E4DD58B5
MASK = 2**64 - 1


def stream(seed: int, source: int, file: int) -> int:
    """Where the keys of a file's documents begin: 64 bits of BLAKE2b."""
    name = f"mini-chat order {seed} {source} {file}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: uint64 (n,) → uint64 (n,), one-to-one, every bit depending on every bit."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def document_keys(streams: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Keys, uint64 (n,), of the documents of these numbers in files of these streams (uint64 (n,) both)."""
    return mix64(streams + numbers * np.uint64(GOLDEN))


def copy_keys(keys: np.ndarray, copy: int) -> np.ndarray:
    """Keys of the documents' `copy`-th repetition, from 1; of 0 they are the keys themselves."""
    return keys if copy == 0 else mix64(keys + np.uint64(copy * GOLDEN & MASK))


def times_seen(keys: np.ndarray, epochs: float | np.ndarray, draw: int) -> np.ndarray:
    """How often each document is seen, int64 (n,): the whole part of `epochs`, and once more for a drawn fraction."""
    whole = np.floor(epochs)
    drawn = mix64(keys ^ np.uint64(draw)).astype(np.float64) < (epochs - whole) * 2.0**64
    return whole.astype(np.int64) + drawn
