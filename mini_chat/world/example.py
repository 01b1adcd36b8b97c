"""The one form in which a skill hands over what it made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from mini_chat.world.holdout import Key
from mini_chat.world.lexicon import Thing

T = TypeVar("T")
Message = dict[str, str]
# A denied value is no answer: "Tom is not in the park".
STOP = {"en": ".", "zh": "。"}
DENIALS = {"en": ("not",), "zh": ("不", "没")}


class Answer(NamedTuple):
    """One answer in its two styles; `curt` equals `full` where the answer is more than a value."""

    full: str
    curt: str

    @property
    def has_styles(self) -> bool:
        return self.full != self.curt


@dataclass(frozen=True)
class Example:
    """A question with its right answer, a wrong one of the same type, and the right one in the other language
    (`foreign`; the same as `right` where that language must not tell).

    Pretraining exercises, dialogues, preference pairs and exam items all come from this.
    """

    skill: str
    language: str
    key: Key
    user: str
    right: Answer
    wrong: Answer
    foreign: Answer
    must: tuple[str, ...]
    rivals: Sequence[str] = ()  # the other values of the kind
    system: str = ""
    before: tuple[tuple[str, str], ...] = ()  # earlier (user, assistant) exchanges
    accept: tuple[str, ...] = ()  # whole answers, for what is compared whole
    final: str = ""  # the number that must come last, where working is shown
    reply_language: str = ""  # where it is not the prompt's

    def prompt(self) -> list[Message]:
        """The conversation up to and including the question."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.before:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*messages, {"role": "user", "content": self.user}]

    def text(self) -> str:
        """The same as plain prose: a reading-book exercise with its answer."""
        lines = [self.system] if self.system else []
        lines += [line for exchange in self.before for line in exchange]
        return "\n".join([*lines, self.user, self.right.full])

    def item(self, identity: str) -> dict[str, object]:
        """The exam item: what the reply must contain and what it must not."""
        shown = self.right.full.lower()
        must_not = [value for value in self.rivals if value.lower() not in shown]
        if not self.accept:
            must_not += [word for word in DENIALS[self.reply_language or self.language] if word not in shown]
        item: dict[str, object] = {
            "id": identity,
            "skill": self.skill,
            "language": self.language,
            "reply_language": self.reply_language or self.language,
            "messages": self.prompt(),
            "answer": self.right.full,
            "must": list(self.must),
            "must_not": must_not,
        }
        if self.accept:
            item["accept"] = list(self.accept)
        if self.final:
            item["final"] = self.final
        return item


def names(things: Sequence[Thing], language: str) -> list[str]:
    """The forms of `things` in one language."""
    return [thing.name(language) for thing in things]


def another(rng: random.Random, things: Sequence[T], *taken: T) -> T:
    """A random element that is none of `taken`."""
    while True:
        choice = rng.choice(things)
        if choice not in taken:
            return choice


def capital(text: str) -> str:
    """The text with its first letter as a sentence begins."""
    return text[:1].upper() + text[1:]
