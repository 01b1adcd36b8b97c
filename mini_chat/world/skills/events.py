"""What people do in the stories: told, asked and answered the same way by every skill that tells a story.

The unit that is held out is the event itself, (relation, person, value): a story of the exam asks for an event that no
training text tells, so that the answer has to be read from the story.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from mini_chat.world import lexicon
from mini_chat.world.example import STOP, Answer, another, capital
from mini_chat.world.holdout import TRAIN, split_of
from mini_chat.world.lexicon import COLOURS, OBJECTS, PEOPLE, Thing


class Relation(NamedTuple):
    """`{p}` is the person, `{v}` the value, `{a}` one of it."""

    name: str
    values: Sequence[Thing]
    tell: dict[str, str]
    ask: dict[str, str]
    curt: dict[str, str]
    ask_who: dict[str, str]


RELATIONS = (
    Relation(
        "go", lexicon.PLACES,
        {"en": "{p} went to the {v}.", "zh": "{p}去了{v}。"},
        {"en": "Where did {p} go?", "zh": "{p}去了哪里？"},
        {"en": "The {v}.", "zh": "{v}。"},
        {"en": "Who went to the {v}?", "zh": "谁去了{v}？"},
    ),
    Relation(
        "buy", lexicon.OBJECTS,
        {"en": "{p} bought {a}.", "zh": "{p}买了{a}。"},
        {"en": "What did {p} buy?", "zh": "{p}买了什么？"},
        {"en": "{a}.", "zh": "{a}。"},
        {"en": "Who bought {a}?", "zh": "谁买了{a}？"},
    ),
    Relation(
        "see", lexicon.ANIMALS,
        {"en": "{p} saw {a}.", "zh": "{p}看见了{a}。"},
        {"en": "What did {p} see?", "zh": "{p}看见了什么？"},
        {"en": "{a}.", "zh": "{a}。"},
        {"en": "Who saw {a}?", "zh": "谁看见了{a}？"},
    ),
    Relation(
        "eat", lexicon.FOODS,
        {"en": "{p} ate some {v}.", "zh": "{p}吃了{v}。"},
        {"en": "What did {p} eat?", "zh": "{p}吃了什么？"},
        {"en": "Some {v}.", "zh": "{v}。"},
        {"en": "Who ate some {v}?", "zh": "谁吃了{v}？"},
    ),
)  # fmt: skip


class Event(NamedTuple):
    """One person's deed."""

    relation: Relation
    person: Thing
    value: Thing

    @property
    def split(self) -> str:
        return split_of("event", self.relation.name, self.person.en, self.value.en)

    def _fill(self, template: str, language: str) -> str:
        one = self.value.one(language)
        return capital(template.format(p=self.person.name(language), v=self.value.name(language), a=one))

    def tell(self, language: str) -> str:
        return self._fill(self.relation.tell[language], language)

    def ask(self, language: str) -> str:
        return self._fill(self.relation.ask[language], language)

    def ask_who(self, language: str) -> str:
        return self._fill(self.relation.ask_who[language], language)

    def answer(self, language: str) -> Answer:
        """The answer to `ask`."""
        return Answer(self.tell(language), self._fill(self.relation.curt[language], language))

    def answer_who(self, language: str) -> Answer:
        """The answer to `ask_who`."""
        return Answer(self.tell(language), self.person.name(language) + STOP[language])


def draw_event(rng: random.Random, split: str, *taken: Event, relation: Relation | None = None) -> Event:
    """An event of a split, of a person and a value that `taken` do not have."""
    people, values = [event.person for event in taken], [event.value for event in taken]
    while True:
        chosen = relation or rng.choice(RELATIONS)
        event = Event(chosen, another(rng, PEOPLE, *people), another(rng, chosen.values, *values))
        if event.split == split:
            return event


def draw_story(rng: random.Random, split: str) -> tuple[Event, list[Event]]:
    """The event that is asked, of the split, and the story it stands in: three events of three relations.

    All are of one person, or one of those that are not asked is somebody else's.
    """
    relations = rng.sample(RELATIONS, 3)
    asked = draw_event(rng, split, relation=relations[0])
    told = [asked, *(_draw_deed(rng, asked.person, relation) for relation in relations[1:])]
    if rng.random() < 0.5:
        told[-1] = draw_event(rng, TRAIN, asked, relation=relations[-1])
    rng.shuffle(told)
    return asked, told


def is_of_one(told: Sequence[Event]) -> bool:
    """Whether one person does all that is told."""
    return len({event.person for event in told}) == 1


def _draw_deed(rng: random.Random, person: Thing, relation: Relation) -> Event:
    """What a person does in a relation, of what training may tell."""
    while True:
        event = Event(relation, person, rng.choice(relation.values))
        if event.split == TRAIN:
            return event


def join(sentences: Sequence[str], language: str) -> str:
    """Sentences as running text."""
    return (" " if language == "en" else "").join(sentences)


class Purchase(NamedTuple):
    """A coloured thing that somebody bought."""

    person: Thing
    thing: Thing
    colour: Thing

    @property
    def key(self) -> tuple[str, ...]:
        return ("purchase", self.person.en, self.thing.en, self.colour.en)

    def tell(self, language: str) -> str:
        one = self.thing.one(language, self.colour)
        return f"{self.person.en} bought {one}." if language == "en" else f"{self.person.zh}买了{one}。"


def draw_purchase(rng: random.Random, split: str, *taken: Purchase) -> Purchase:
    """A purchase of a split that shares nothing with `taken`."""
    while True:
        purchase = Purchase(
            another(rng, PEOPLE, *(p.person for p in taken)),
            another(rng, OBJECTS, *(p.thing for p in taken)),
            another(rng, COLOURS, *(p.colour for p in taken)),
        )
        if split_of(*purchase.key) == split and Event(RELATIONS[1], purchase.person, purchase.thing).split == TRAIN:
            return purchase
