"""What the exam may ask and training may not show.

Two rules keep them apart. First, every sample has a key: the skill and the things that are combined in it, the same in
both languages. A hash of the key, independent of the seed, gives 10% of all keys to the exam and 5% to the held-out
preference pairs; whatever is trained on skips those keys, in pretraining and in dialogues, in both languages.
Second, a `Guard` made from the finished exam drops any training text that, by chance, repeats a long stretch of an exam
prompt: `WINDOW` consecutive words (English) or characters (Chinese) that hold at least two of the things combined, or
the whole prompt where it is shorter. A stretch with fewer than two is a phrasing, and phrasings are meant to be shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from mini_chat.world import lexicon

TRAIN, EXAM, HELD = "train", "exam", "held"
EXAM_PERCENT, HELD_PERCENT = 10, 5
WINDOW = {"en": 10, "zh": 14}
_START = 4  # words by which the guard finds where a stretch may begin

Key = tuple[str | int, ...]
_UNIT = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+|[\u4e00-\u9fff]")
_THING = re.compile(
    r"\d+|"
    + "|".join(
        rf"\b{thing.en.lower()}s?\b|{thing.zh}"
        for kind in (
            lexicon.PEOPLE, lexicon.ANIMALS, lexicon.OBJECTS, lexicon.PLACES, lexicon.TOWNS, lexicon.COLOURS,
            lexicon.FOODS, lexicon.JOBS, lexicon.BOTS, lexicon.PET_NAMES, lexicon.STRANGE_FIRST, lexicon.STRANGE_LAST,
        )
        for thing in kind
    )
)  # fmt: skip


def rank(key: Key) -> int:
    """A number below 2**32 that depends on the key alone, the same in every process and for every seed."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=4).digest(), "big")


def split_of(*key: str | int) -> str:
    """Which of the three splits a composition belongs to."""
    percent = rank(key) % 100
    return EXAM if percent < EXAM_PERCENT else HELD if percent < EXAM_PERCENT + HELD_PERCENT else TRAIN


def pair_split(one: str, two: str) -> str:
    """The split of two words standing beside each other: what the exam puts together, training never does."""
    return split_of("beside", *sorted((one, two)))


def units(text: str) -> list[str]:
    """Words in lower case, numbers and single Chinese characters, in order; punctuation and spaces do not count."""
    return _UNIT.findall(text.lower())


class Guard:
    """Finds long stretches of the exam's prompts in a training text."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[str, ...], set[tuple[str, ...]]] = {}

    @classmethod
    def of(cls, prompts: Iterable[tuple[str, str]]) -> Guard:
        """A guard against (language, prompt) pairs."""
        guard = cls()
        for language, prompt in prompts:
            for stretch in stretches(language, prompt):
                guard._stretches.setdefault(stretch[:_START], set()).add(stretch)
        return guard

    def blocks(self, text: str) -> bool:
        """Whether `text` repeats a stretch of the exam."""
        words = units(text)
        starts = zip(*(words[i:] for i in range(_START)), strict=False)
        known = self._stretches
        for position, start in enumerate(starts):
            if start in known:
                for stretch in known[start]:
                    if tuple(words[position : position + len(stretch)]) == stretch:
                        return True
        return False


def stretches(language: str, prompt: str) -> Iterator[tuple[str, ...]]:
    """The parts of a prompt that training must not contain, as sequences of units."""
    words = units(prompt)
    size = WINDOW[language]
    if len(words) <= size:
        yield tuple(words)
        return
    for position in range(len(words) - size + 1):
        window = words[position : position + size]
        if things_in(window) >= 2:
            yield tuple(window)


def things_in(words: Sequence[str]) -> int:
    """How many things of the world a sequence of units names."""
    text = "".join(word if "\u4e00" <= word <= "\u9fff" else f" {word} " for word in words)
    return len(_THING.findall(text))
