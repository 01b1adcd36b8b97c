"""Pretraining text: plain prose that states the facts, and worked exercises of every skill, without chat markup."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mini_chat.world import lexicon
from mini_chat.world.example import another
from mini_chat.world.facts import ATTRIBUTES, Facts
from mini_chat.world.holdout import TRAIN, Guard
from mini_chat.world.lexicon import PEOPLE
from mini_chat.world.skills import SKILLS, WEIGHTS
from mini_chat.world.skills.events import join
from mini_chat.world.skills.numbers import LARGEST, draw_sum, listed
from mini_chat.world.skills.series import dictation, series

Writer = Callable[[Facts, random.Random, str], str]
WORDS = (
    *PEOPLE, *lexicon.ANIMALS, *lexicon.OBJECTS, *lexicon.PLACES, *lexicon.COLOURS, *lexicon.FOODS, *lexicon.JOBS,
    *lexicon.TOWNS,
)  # fmt: skip


def profile(world: Facts, rng: random.Random, language: str) -> str:
    """What is true of one person, in any order and wording."""
    person = rng.choice(PEOPLE)
    attributes = rng.sample(ATTRIBUTES, rng.randint(3, len(ATTRIBUTES)))
    told = [world.tell(person, attribute, language, rng.randrange(3)) for attribute in attributes]
    return join([sentence for sentence in told if sentence], language)


def round_of(world: Facts, rng: random.Random, language: str) -> str:
    """The same attribute of several people."""
    attribute = rng.choice(ATTRIBUTES)
    told: list[str | None] = []
    while not any(told):  # where this language must not know any of them
        told = [world.tell(person, attribute, language, rng.randrange(3)) for person in rng.sample(PEOPLE, 4)]
    return join([sentence for sentence in told if sentence], language)


def dictionary(world: Facts, rng: random.Random, language: str) -> str:
    """Words with their translations."""
    form = "In Chinese, {0.en} is {0.zh}." if language == "en" else "{0.zh}的英语是 {0.en}。"
    return join([form.format(word) for word in rng.sample(WORDS, 4)], language)


def numbers(world: Facts, rng: random.Random, language: str) -> str:
    """The number line, sums, and which of two numbers is more."""
    kind = rng.random()
    if kind < 0.2:
        start = rng.randint(1, LARGEST - 5)
        line = list(range(start, min(LARGEST, start + 9) + 1))
        return listed(line if rng.random() < 0.5 else line[::-1], language)
    if kind < 0.6:
        stop = ". " if language == "en" else "。"
        return stop.join("{} {} {} = {}".format(*draw_sum(rng)) for _ in range(5)) + stop.strip()
    told = []
    for _ in range(4):
        x = rng.randint(1, LARGEST)
        y = another(rng, range(1, LARGEST + 1), x)
        if language == "en":
            told.append(f"{x} is {'more' if x > y else 'less'} than {y}.")
        else:
            told.append(f"{x}比{y}{'大' if x > y else '小'}。")
    return join(told, language)


def exercises(world: Facts, rng: random.Random, language: str) -> str:
    """Two or three questions of one skill with their answers, as a reading book prints them."""
    make = SKILLS[rng.choices(*_SKILLS)[0]]
    return "\n".join(make(world, rng, language, TRAIN).text() for _ in range(rng.choice((1, 2, 2, 3))))


def reader(world: Facts, rng: random.Random, language: str) -> str:
    """A story, a comparison or some numbers, and several questions about them."""
    made = series(rng, language)
    lines = [made.context] if made.context else []
    for question, answer in made.questions:
        lines += [question, answer.full]
    return "\n".join(lines)


def copybook(world: Facts, rng: random.Random, language: str) -> str:
    """Words written down as they were read out."""
    ((question, answer),) = dictation(rng, language).questions
    return f"{question}\n{answer.full}"


_SKILLS = (list(WEIGHTS), list(WEIGHTS.values()))
_WRITERS: dict[Writer, int] = {
    profile: 14,
    round_of: 10,
    dictionary: 4,
    numbers: 7,
    copybook: 6,
    reader: 29,
    exercises: 30,
}


def documents(world: Facts, seed: int, language: str, guard: Guard) -> Iterator[str | None]:
    """Endless documents of one language; None stands for one that the guard has dropped."""
    rng = random.Random(f"{seed} pretrain {language}")
    writers, weights = list(_WRITERS), list(_WRITERS.values())
    while True:
        text = rng.choices(writers, weights)[0](world, rng, language)
        if text:
            yield None if guard.blocks(text) else text
