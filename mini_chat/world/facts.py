"""What is true in the world: five attributes of each person, and which of them may be asked where.

The values depend on the seed. Which (person, attribute) pairs are set aside does not: of the 24 people, each attribute
gives 5 to the exam (the fact is told in both languages, its question is never trained), 2 are told in English only and
2 in Chinese only (to measure what crosses over), 1 belongs to the held-out preferences; the rest is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from mini_chat.world import lexicon
from mini_chat.world.example import Answer, capital
from mini_chat.world.holdout import EXAM, HELD, TRAIN, rank
from mini_chat.world.lexicon import PEOPLE, Thing

EN_ONLY, ZH_ONLY = "en only", "zh only"
# Shares of a person-attribute table, in this order of rank within each attribute of 24 people.
_QUOTA = ((EXAM, 5), (EN_ONLY, 2), (ZH_ONLY, 2), (HELD, 1))


class Attribute(NamedTuple):
    """How one attribute is told, asked and answered; `{p}` is the person, `{v}` the value, `{a}` one of the value."""

    name: str
    values: Sequence[Thing]
    tell: dict[str, tuple[str, ...]]  # the first form is also the full answer
    ask: dict[str, tuple[str, ...]]
    curt: dict[str, str]


ATTRIBUTES = (
    Attribute(
        "home", lexicon.TOWNS,
        {"en": ("{p} lives in {v}.", "{p}'s home is in {v}.", "The town of {p} is {v}."),
         "zh": ("{p}住在{v}。", "{p}的家在{v}。", "{p}家住{v}。")},
        {"en": ("Where does {p} live?", "Which town does {p} live in?"), "zh": ("{p}住在哪里？", "{p}的家在哪个镇？")},
        {"en": "{v}.", "zh": "{v}。"},
    ),
    Attribute(
        "job", lexicon.JOBS,
        {"en": ("{p} is {a}.", "{p} works as {a}.", "{p}'s job is {v}."),
         "zh": ("{p}是{v}。", "{p}的工作是{v}。", "{p}当{v}。")},
        {"en": ("What is {p}'s job?", "What does {p} do for work?"), "zh": ("{p}的工作是什么？", "{p}做什么工作？")},
        {"en": "{a}.", "zh": "{v}。"},
    ),
    Attribute(
        "pet", lexicon.ANIMALS,
        {"en": ("{p} keeps {a}.", "{p}'s pet is {a}.", "At home {p} has {a}."),
         "zh": ("{p}养了{a}。", "{p}的宠物是{a}。", "{p}家里有{a}。")},
        {"en": ("What pet does {p} have?", "Which animal does {p} keep?"),
         "zh": ("{p}养了什么动物？", "{p}的宠物是什么？")},
        {"en": "{a}.", "zh": "{a}。"},
    ),
    Attribute(
        "food", lexicon.FOODS,
        {"en": ("{p}'s favourite food is {v}.", "{p} likes to eat {v}.", "The best food for {p} is {v}."),
         "zh": ("{p}最喜欢吃{v}。", "{p}最爱的食物是{v}。", "{p}喜欢吃{v}。")},
        {"en": ("What is {p}'s favourite food?", "Which food does {p} like best?"),
         "zh": ("{p}最喜欢吃什么？", "{p}最爱的食物是什么？")},
        {"en": "{v}.", "zh": "{v}。"},
    ),
    Attribute(
        "colour", lexicon.COLOURS,
        {"en": ("{p}'s favourite colour is {v}.", "{p} likes the colour {v}.", "The best colour for {p} is {v}."),
         "zh": ("{p}最喜欢{v}。", "{p}最爱的颜色是{v}。", "{p}喜欢{v}。")},
        {"en": ("What is {p}'s favourite colour?", "Which colour does {p} like best?"),
         "zh": ("{p}最喜欢什么颜色？", "{p}最爱的颜色是什么？")},
        {"en": "{v}.", "zh": "{v}。"},
    ),
)  # fmt: skip
BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}


def _splits() -> dict[tuple[str, str], str]:
    """The split of every (person, attribute) pair, by rank within the attribute so that the shares are exact."""
    table = {}
    for attribute in ATTRIBUTES:
        people = sorted((person.en for person in PEOPLE), key=lambda name, a=attribute.name: rank(("fact", name, a)))  # type: ignore[misc]
        splits = [split for split, count in _QUOTA for _ in range(count)]
        for person, split in zip(people, splits + [TRAIN] * (len(people) - len(splits)), strict=True):
            table[person, attribute.name] = split
    return table


SPLITS = _splits()


class Facts:
    """The truth for one seed: `value(person, attribute)`, each value given to about the same number of people."""

    def __init__(self, seed: int) -> None:
        self._value: dict[tuple[str, str], Thing] = {}
        for attribute in ATTRIBUTES:
            rng = random.Random(f"{seed} facts {attribute.name}")
            values = [attribute.values[i % len(attribute.values)] for i in range(len(PEOPLE))]
            rng.shuffle(values)
            for person, value in zip(PEOPLE, values, strict=True):
                self._value[person.en, attribute.name] = value

    def value(self, person: Thing, attribute: Attribute) -> Thing:
        return self._value[person.en, attribute.name]

    @staticmethod
    def pairs(split: str) -> list[tuple[Thing, Attribute]]:
        """All (person, attribute) pairs of a split."""
        return [(p, a) for p in PEOPLE for a in ATTRIBUTES if SPLITS[p.en, a.name] == split]

    def tell(self, person: Thing, attribute: Attribute, language: str, form: int) -> str | None:
        """A sentence that states the fact, or None where this language must not know it."""
        if SPLITS[person.en, attribute.name] == (ZH_ONLY if language == "en" else EN_ONLY):
            return None
        return fill(attribute.tell[language][form], person, self.value(person, attribute), language)


def fill(template: str, person: Thing, value: Thing, language: str) -> str:
    """A template with its person and value."""
    one = value.one(language) if value.measure or language == "en" else value.zh
    return capital(template.format(p=person.name(language), v=value.name(language), a=one))


def answer(person: Thing, attribute: Attribute, value: Thing, language: str) -> Answer:
    """The answer that gives `value`, right or wrong."""
    forms = attribute.tell[language][0], attribute.curt[language]
    return Answer(*(fill(form, person, value, language) for form in forms))
