"""Skills about words: translating a sentence, and what kind of thing a word names."""

from __future__ import annotations

import random

from mini_chat.world import lexicon
from mini_chat.world.example import STOP, Answer, Example, another, capital
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import TRAIN, Key, pair_split, split_of
from mini_chat.world.lexicon import ANIMALS, COLOURS, OBJECTS, PEOPLE, PLACES, Thing, other

# ----------------------------------------------------------------------------------------------------------- translate

_VERBS = (Thing("sees", "看见"), Thing("has", "有"), Thing("wants", "想要"), Thing("draws", "画"))
_WITH_PLACE = (_VERBS[0], _VERBS[3])
_TRANSLATE = {
    "en": ("Translate into Chinese: {s}", "How do you say this in Chinese? {s}"),
    "zh": ("翻译成英语：{s}", "这句话用英语怎么说？{s}"),
}


def _sentence(language: str, person: Thing, verb: Thing, colour: Thing, thing: Thing, place: Thing | None) -> str:
    what = thing.one(language, colour)
    if language == "en":
        return f"{person.en} {verb.en} {what}{f' at the {place.en}' if place else ''}."
    return f"{person.zh}{f'在{place.zh}' if place else ''}{verb.zh}{what}。"


def translate(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """A sentence of the prompt's language said in the other one."""
    while True:
        person, colour, thing = rng.choice(PEOPLE), rng.choice(COLOURS), rng.choice((*ANIMALS, *OBJECTS))
        key: Key = ("translate", person.en, colour.en, thing.en)
        if split_of(*key) == split:
            break
    place = rng.choice(PLACES) if rng.random() < 0.4 else None
    verb = rng.choice(_WITH_PLACE if place else _VERBS)
    here, there = (_sentence(lang, person, verb, colour, thing, place) for lang in (language, other(language)))
    false = (
        _sentence(other(language), person, verb, another(rng, COLOURS, colour), thing, place)
        if rng.random() < 0.5
        else _sentence(other(language), another(rng, PEOPLE, person), verb, colour, thing, place)
    )
    return Example(
        "translate", language, key, rng.choice(_TRANSLATE[language]).format(s=here), Answer(there, there),
        Answer(false, false), Answer(here, here), (), accept=(there,), reply_language=other(language),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ category

CATEGORIES: dict[str, tuple[Thing, tuple[Thing, ...]]] = {
    "animal": (Thing("an animal", "动物"), ANIMALS),
    "colour": (Thing("a colour", "颜色"), COLOURS),
    "food": (Thing("a food", "食物"), lexicon.FOODS),
    "job": (Thing("a job", "职业"), lexicon.JOBS),
    "place": (Thing("a place", "地方"), PLACES),
}
_WHICH = {"en": "Which word names {c}: {w}?", "zh": "哪个词是{c}：{w}？"}
_NAMES = {"en": "The word {x} names {c}.", "zh": "{x}是{c}。"}
_ODD = {"en": "Which word does not belong: {w}?", "zh": "哪个词和别的不一样：{w}？"}
_IS_ODD = {"en": "The word {x} does not belong.", "zh": "{x}和别的不一样。"}


def category(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Which of three words names an animal (a colour, ...), or which is of another kind than the two others."""
    odd = rng.random() < 0.4
    while True:
        kinds = rng.sample(sorted(CATEGORIES), 3)
        answer_thing = rng.choice(CATEGORIES[kinds[0]][1])
        first = rng.choice(CATEGORIES[kinds[1]][1])
        second = another(rng, CATEGORIES[kinds[1 if odd else 2]][1], first)
        if {pair_split(answer_thing.en, first.en), pair_split(answer_thing.en, second.en)} != {split}:
            continue
        if split != TRAIN or pair_split(first.en, second.en) == TRAIN:
            break
    words = [answer_thing, first, second]
    key: Key = ("category", odd, *sorted(word.en for word in words))
    rng.shuffle(words)
    wrong = another(rng, words, answer_thing)
    kind = CATEGORIES[kinds[0]][0]

    def fill(template: str, lang: str, x: Thing) -> str:
        shown = (", " if lang == "en" else "、").join(word.name(lang) for word in words)
        return template.format(c=kind.name(lang), w=shown, x=x.name(lang))

    def answer(lang: str, x: Thing) -> Answer:
        full = fill((_IS_ODD if odd else _NAMES)[lang], lang, x)
        return Answer(full, capital(x.name(lang)) + STOP[lang])

    return Example(
        "category", language, key, fill((_ODD if odd else _WHICH)[language], language, answer_thing),
        answer(language, answer_thing), answer(language, wrong), answer(other(language), answer_thing),
        (answer_thing.name(language),), [word.name(language) for word in words],
    )  # fmt: skip
