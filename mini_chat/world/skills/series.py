"""Several questions about one matter: a story and all that can be asked of it, numbers sorted up and down.

One context with many questions gives a small model more answers to learn from, for each token read, than one question
to a context does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from mini_chat.world.example import STOP, Answer
from mini_chat.world.holdout import TRAIN, split_of
from mini_chat.world.lexicon import ANIMALS, COLOURS, FOODS, OBJECTS, PEOPLE, PLACES, other
from mini_chat.world.skills.events import draw_story, is_of_one, join
from mini_chat.world.skills.numbers import LARGEST, ask_extreme, ask_order, told_chain
from mini_chat.world.skills.reading import language_request


class Series(NamedTuple):
    """A context, and questions on it with their answers, in the order in which they are asked."""

    skill: str
    context: str
    questions: list[tuple[str, Answer]]


def story_series(rng: random.Random, language: str) -> Series:
    """A story, and all that can be asked of it, sometimes to be answered in the other language."""
    _, told = draw_story(rng, TRAIN)
    foreign = rng.random() < 0.4
    target = other(language) if foreign else language
    request = language_request(rng, language, target) if foreign else ""
    questions = []
    for event in rng.sample(told, len(told)):
        if not foreign and is_of_one(told) and rng.random() < 0.25:
            questions.append((event.ask_who(language), event.answer_who(language)))
        else:
            ask = event.ask(language)
            questions.append((join([request, ask], language) if request else ask, event.answer(target)))
    return Series(
        "language" if foreign else "story", join([event.tell(language) for event in told], language), questions
    )


def order_series(rng: random.Random, language: str) -> Series | None:
    """The same numbers sorted both ways, in different words. None where they are the exam's."""
    numbers = rng.sample(range(1, LARGEST + 1), rng.choice((3, 3, 4)))
    if split_of("order", *sorted(numbers)) != TRAIN:
        return None
    first = rng.random() < 0.5
    return Series("order", "", [ask_order(rng, numbers, down, language) for down in (first, not first)])


def compare_series(rng: random.Random, language: str) -> Series:
    """Three people in a chain; who is the most and who the least."""
    axis, people, told = told_chain(rng, language, TRAIN)
    first = rng.random() < 0.5
    return Series("compare", told, [ask_extreme(axis, people, least, language) for least in (first, not first)])


def dictation(rng: random.Random, language: str) -> Series:
    """Words to be written down as they are heard."""
    kinds = (PEOPLE, ANIMALS, OBJECTS, FOODS, COLOURS, PLACES)
    words = [rng.choice(rng.choice(kinds)).name(language) for _ in range(rng.randint(3, 6))]
    text = (", " if language == "en" else "、").join(words) + STOP[language]
    return Series("dictation", "", [(("Write down: " if language == "en" else "写下来：") + text, Answer(text, text))])


_MAKERS: dict[Callable[[random.Random, str], Series | None], int] = {
    story_series: 50,
    order_series: 25,
    compare_series: 25,
}


def series(rng: random.Random, language: str) -> Series:
    """A series of some skill that training may see."""
    while True:
        if made := rng.choices(list(_MAKERS), list(_MAKERS.values()))[0](rng, language):
            return made
