"""Skills with quantities: comparing, putting in order, adding and taking away, counting.

Small number spaces have few compositions, so what is held out is always wider than the numbers: every bare sum is seen
in training, a sum told of a certain person and a certain thing is not; a set of numbers to sort is held out whole,
whatever the order it is given in and whichever way it is to be sorted; so are the things that are to be counted.
"""

from __future__ import annotations

import itertools
import random

from mini_chat.world.example import STOP, Answer, Example, another, capital, names
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import TRAIN, Key, pair_split, split_of
from mini_chat.world.lexicon import ANIMALS, OBJECTS, PEOPLE, Thing, other
from mini_chat.world.skills.events import join

LARGEST = 20
NUMBERS = [str(number) for number in range(LARGEST + 1)]

# ------------------------------------------------------------------------------------------------------------- compare

# axis: (more than, less than, most, least)
_AXES = {
    "tall": {"en": ("taller", "shorter", "the tallest", "the shortest"), "zh": ("高", "矮", "最高", "最矮")},
    "old": {"en": ("older", "younger", "the oldest", "the youngest"), "zh": ("大", "小", "最大", "最小")},
    "fast": {"en": ("faster", "slower", "the fastest", "the slowest"), "zh": ("快", "慢", "最快", "最慢")},
}
_THAN = {"en": "{x} is {than} than {y}.", "zh": "{x}比{y}{than}。"}
_WHO = {"en": "Who is {most}?", "zh": "谁{most}？"}
_IS = {"en": "{x} is {most}.", "zh": "{x}{most}。"}


def draw_chain(rng: random.Random, split: str) -> list[Thing]:
    """Three people from the most to the least; who stands beside whom is of the split."""
    while True:
        people = rng.sample(PEOPLE, 3)
        if {pair_split(one.en, two.en) for one, two in itertools.pairwise(people)} == {split}:
            return people


def told_chain(rng: random.Random, language: str, split: str) -> tuple[str, list[Thing], str]:
    """An axis, three people from the most to the least, and the two sentences that compare them, up or down."""
    axis, people, down = rng.choice(sorted(_AXES)), draw_chain(rng, split), rng.random() < 0.5
    line = people if down else people[::-1]
    than = _AXES[axis][language][0 if down else 1]
    told = [
        _THAN[language].format(x=x.name(language), y=y.name(language), than=than) for x, y in itertools.pairwise(line)
    ]
    return axis, people, join(told, language)


def ask_extreme(axis: str, people: list[Thing], least: bool, language: str) -> tuple[str, Answer]:
    """Who of them is the most, or the least."""
    question = _WHO[language].format(most=_AXES[axis][language][3 if least else 2])
    return question, _extreme(axis, people[-1 if least else 0], least, language)


def _extreme(axis: str, person: Thing, least: bool, language: str) -> Answer:
    full = _IS[language].format(x=person.name(language), most=_AXES[axis][language][3 if least else 2])
    return Answer(full, person.name(language) + STOP[language])


def compare(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Who is the most, or the least, of three people that are compared in pairs."""
    axis, people, told = told_chain(rng, language, split)
    key: Key = ("compare", axis, *(person.en for person in people))
    least = rng.random() < 0.5
    wrong = people[rng.choice((0, 1) if least else (1, 2))]
    question, right = ask_extreme(axis, people, least, language)
    return Example(
        "compare", language, key, join([told, question], language), right, _extreme(axis, wrong, least, language),
        ask_extreme(axis, people, least, other(language))[1], (people[-1 if least else 0].name(language),),
        names(PEOPLE, language),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- order

_SORT = {
    "en": (("Sort from small to large: {n}.", "Put these in order from small to large: {n}."),
           ("Sort from large to small: {n}.", "Put these in order from large to small: {n}.")),
    "zh": (("从小到大排列：{n}。", "请把这些数从小到大排好：{n}。"),
           ("从大到小排列：{n}。", "请把这些数从大到小排好：{n}。")),
}  # fmt: skip
_SORTED = {"en": "The order is {n}.", "zh": "顺序是{n}。"}


def listed(numbers: list[int], language: str) -> str:
    """`3, 5, 8` or `3、5、8`."""
    return (", " if language == "en" else "、").join(map(str, numbers))


def order(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Three or four numbers sorted up or down."""
    while True:
        numbers = rng.sample(range(1, LARGEST + 1), rng.choice((3, 3, 4)))
        key: Key = ("order", *sorted(numbers))
        if split_of(*key) == split:
            break
    down = rng.random() < 0.5
    question, right = ask_order(rng, numbers, down, language)
    wrong = sorted(numbers, reverse=down)
    must = (listed(wrong, language),)
    at = rng.randrange(len(wrong) - 1)
    wrong[at], wrong[at + 1] = wrong[at + 1], wrong[at]
    foreign = _ordered(sorted(numbers, reverse=down), other(language))
    return Example("order", language, key, question, right, _ordered(wrong, language), foreign, must, NUMBERS)


def ask_order(rng: random.Random, numbers: list[int], down: bool, language: str) -> tuple[str, Answer]:
    """The request to sort some numbers, and the sorted list."""
    question = rng.choice(_SORT[language][down]).format(n=listed(numbers, language))
    return question, _ordered(sorted(numbers, reverse=down), language)


def _ordered(numbers: list[int], language: str) -> Answer:
    text = listed(numbers, language)
    return Answer(_SORTED[language].format(n=text), text + STOP[language])


# ---------------------------------------------------------------------------------------------------------- arithmetic

_BARE = {"en": "What is {a} {op} {b}?", "zh": "{a} {op} {b} 等于多少？"}
_WORDS = {
    "+": {
        "en": ("{p} has {na} and gets {b} more. How many {o} does {p} have now?",
               "{p} had {na}. Then {p} got {b} more. How many {o} does {p} have now?"),
        "zh": ("{p}有{na}，又得到{nb}。{p}现在有多少{m}{o}？", "{p}原来有{na}，后来多了{nb}。{p}现在有多少{m}{o}？"),
    },
    "-": {
        "en": ("{p} has {na} and gives away {b}. How many {o} does {p} have now?",
               "{p} had {na}. Then {p} lost {b}. How many {o} does {p} have now?"),
        "zh": ("{p}有{na}，送走了{nb}。{p}现在有多少{m}{o}？", "{p}原来有{na}，后来少了{nb}。{p}现在有多少{m}{o}？"),
    },
}  # fmt: skip
_RESULT = {"en": "{p} has {a} {op} {b} = {n}.", "zh": "{p}有{a} {op} {b} = {n}。"}


def draw_sum(rng: random.Random) -> tuple[int, str, int, int]:
    """(a, operator, b, result): 1 to 10 added, or the reverse; results from 1 to 20."""
    x, y = rng.randint(1, LARGEST // 2), rng.randint(1, LARGEST // 2)
    return (x, "+", y, x + y) if rng.random() < 0.5 else (x + y, "-", y, x)


def arithmetic(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """A sum told of a person and some things; in training the bare sum as well."""
    a, op, b, result = draw_sum(rng)
    if split == TRAIN and rng.random() < 0.3:
        return bare_sum(rng, language, a, op, b, result)
    while True:
        person, thing = rng.choice(PEOPLE), rng.choice(OBJECTS)
        key: Key = ("sum", person.en, thing.en, a, op, b)
        if split_of(*key) == split:
            break
        a, op, b, result = draw_sum(rng)
    wrong = another(rng, [max(1, result - 2), max(1, result - 1), result + 1, result + 2], result)

    def answer(lang: str, number: int) -> Answer:
        full = _RESULT[lang].format(p=person.name(lang), a=a, op=op, b=b, n=thing.many(lang, number))
        return Answer(full, f"{number}{STOP[lang]}")

    question = rng.choice(_WORDS[op][language]).format(
        p=person.name(language), na=thing.many(language, a), nb=f"{b}{thing.measure}", b=b, m=thing.measure,
        o=thing.plural if language == "en" else thing.zh,
    )  # fmt: skip
    return Example(
        "arithmetic", language, key, question, answer(language, result), answer(language, wrong),
        answer(other(language), result), (str(result),), NUMBERS, final=str(result),
    )  # fmt: skip


def bare_sum(rng: random.Random, language: str, a: int, op: str, b: int, result: int) -> Example:
    """`What is 3 + 5?`: the table itself, all of it trained on."""

    def answer(lang: str, number: int) -> Answer:
        return Answer(f"{a} {op} {b} = {number}{STOP[lang]}", f"{number}{STOP[lang]}")

    wrong = another(rng, [max(1, result - 1), result + 1, result + 2], result)
    return Example(
        "arithmetic", language, ("bare", a, op, b), _BARE[language].format(a=a, op=op, b=b), answer(language, result),
        answer(language, wrong), answer(other(language), result), (str(result),), NUMBERS, final=str(result),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ counting

_COUNT = {"en": "How many {many} are there?", "zh": "有几{measure}{one}？"}
MOST_COUNTED = 9
_ANY = ((ANIMALS, Thing("animal", "动物", "只")), (OBJECTS, Thing("thing", "东西", "样")))


def counting(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """How many animals, or things, of any kind stand in a list; in training also how many of one kind."""
    while True:
        count = rng.randint(1, MOST_COUNTED)
        kinds, name = rng.choice(_ANY)
        if split == TRAIN and rng.random() < 0.3:
            name = rng.choice(kinds)
            things = [name] * count
            key: Key = ("count", "alike", name.en)
            break
        things = [rng.choice(kinds) for _ in range(count)]
        key = ("count", *sorted(thing.en for thing in things))
        if len({*things}) > 1 and split_of(*key) == split:
            break
    wrong = another(rng, range(max(1, count - 2), min(MOST_COUNTED, count + 2) + 1), count)

    def answer(lang: str, number: int) -> Answer:
        many = name.many(lang, number)
        full = f"有{many}。" if lang == "zh" else f"There {'is' if number == 1 else 'are'} {many}."
        return Answer(full, many + STOP[lang])

    listed_things = (", " if language == "en" else "、").join(names(things, language)) + STOP[language]
    question = _COUNT[language].format(many=name.plural, measure=name.measure, one=name.zh)
    return Example(
        "counting", language, key, join([capital(listed_things), question], language), answer(language, count),
        answer(language, wrong), answer(other(language), count), (name.many(language, count),), NUMBERS,
    )  # fmt: skip
