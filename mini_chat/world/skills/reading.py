"""Skills that read a little story in the prompt: answering from it in either language, seeing what it leaves out."""

from __future__ import annotations

import random

from mini_chat.world import facts, lexicon
from mini_chat.world.example import Answer, Example, another, names
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import TRAIN, Key, split_of
from mini_chat.world.lexicon import COLOURS, OBJECTS, PEOPLE, STRANGE_FIRST, STRANGE_LAST, Thing, other
from mini_chat.world.skills.events import (
    RELATIONS,
    Event,
    Purchase,
    draw_event,
    draw_purchase,
    draw_story,
    is_of_one,
    join,
)


def story(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Somebody does three things, or somebody else does one of them; one is asked: where, what or who."""
    asked, told = draw_story(rng, split)
    text = join([event.tell(language) for event in told], language)
    key: Key = ("event", asked.relation.name, asked.person.en, asked.value.en)
    if is_of_one(told) and rng.random() < 0.25:
        stranger = another(rng, PEOPLE, asked.person)
        return Example(
            "story", language, key, join([text, asked.ask_who(language)], language),
            asked.answer_who(language), asked._replace(person=stranger).answer_who(language),
            asked.answer_who(other(language)), (asked.person.name(language),), names(PEOPLE, language),
        )  # fmt: skip
    wrong = asked._replace(value=another(rng, asked.relation.values, asked.value))
    return Example(
        "story", language, key, join([text, asked.ask(language)], language),
        asked.answer(language), wrong.answer(language), asked.answer(other(language)),
        (asked.value.name(language),), names(asked.relation.values, language),
    )  # fmt: skip


_IN_LANGUAGE = {
    "en": {"zh": ("Answer in Chinese:", "In Chinese, please:"), "en": ("Answer in English:", "In English, please:")},
    "zh": {"zh": ("请用中文回答：", "用中文说："), "en": ("请用英语回答：", "用英语说：")},
}


def language_request(rng: random.Random, language: str, target: str) -> str:
    """The request, in one language, to answer in another."""
    return rng.choice(_IN_LANGUAGE[language][target])


def in_language(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """A story in one language, its answer asked for in the other (in training sometimes in the same one)."""
    target = language if split == TRAIN and rng.random() < 0.2 else other(language)
    asked, told = draw_story(rng, split)
    wrong = asked._replace(value=another(rng, asked.relation.values, asked.value))
    request = language_request(rng, language, target)
    key: Key = ("event", asked.relation.name, asked.person.en, asked.value.en)
    return Example(
        "language", language, key,
        join([*(event.tell(language) for event in told), request, asked.ask(language)], language),
        asked.answer(target), wrong.answer(target), asked.answer(other(target)),
        (asked.value.name(target),), names(asked.relation.values, target), reply_language=target,
    )  # fmt: skip


def unknown(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Somebody whom nobody knows, or something that the story does not tell."""
    return (_stranger if rng.random() < 0.5 else _untold)(rng, language, split)


_WHO_IS = {"en": ("Who is {p}?", "Do you know {p}?"), "zh": ("{p}是谁？", "你认识{p}吗？")}


def _stranger(rng: random.Random, language: str, split: str) -> Example:
    while True:
        first, last = rng.choice(STRANGE_FIRST), rng.choice(STRANGE_LAST)
        key: Key = ("stranger", first.en, last.en)
        if split_of(*key) == split:
            break
    person = Thing(f"{first.en} {last.en}", f"{first.zh}·{last.zh}")
    attribute = rng.choice(facts.ATTRIBUTES)
    question = rng.choice(_WHO_IS[language] if rng.random() < 0.3 else attribute.ask[language])
    value = rng.choice(attribute.values)
    made_up = facts.answer(person, attribute, value, language).full
    full = {lang: _UNKNOWN[lang].format(p=person.name(lang)) for lang in lexicon.LANGUAGES}
    must = ("do not know", person.en) if language == "en" else ("不认识", person.zh)
    rivals = [*names(STRANGE_FIRST, language), *names(STRANGE_LAST, language), *names(attribute.values, language)]
    return Example(
        "unknown", language, key, question.format(p=person.name(language)),
        Answer(full[language], full[language]), Answer(made_up, made_up), Answer(*[full[other(language)]] * 2), must,
        [name for name in rivals if name not in (first.name(language), last.name(language))],
    )  # fmt: skip


_UNKNOWN = {"en": "I do not know anyone called {p}.", "zh": "我不认识叫{p}的人。"}
# What a story about a purchase does not tell: the question, the honest answer, and an invented one.
_UNTOLD = {
    "colour": {
        "en": ("What colour is {p}'s {o}?", "The story does not say what colour {p}'s {o} is.", "{p}'s {o} is {c}."),
        "zh": ("{p}的{o}是什么颜色？", "故事没有说{p}的{o}是什么颜色。", "{p}的{o}是{c}的。"),
    },
    "giver": {
        "en": ("Who gave {p} the {o}?", "The story does not say who gave {p} the {o}.", "{q} gave {p} the {o}."),
        "zh": ("谁把{o}给了{p}？", "故事没有说谁把{o}给了{p}。", "{q}把{o}给了{p}。"),
    },
    "place": {
        "en": ("Where did {p} put the {o}?", "The story does not say where {p} put the {o}.",
               "{p} put the {o} in the {l}."),
        "zh": ("{p}把{o}放在哪里？", "故事没有说{p}把{o}放在哪里。", "{p}把{o}放在{l}。"),
    },
}  # fmt: skip


def _untold(rng: random.Random, language: str, split: str) -> Example:
    while True:
        asked, kind = rng.choice(sorted(_UNTOLD)), Event(RELATIONS[1], rng.choice(PEOPLE), rng.choice(OBJECTS))
        key: Key = ("untold", asked, kind.person.en, kind.value.en)
        if split_of(*key) == split and kind.split == TRAIN:
            break
    person, thing = kind.person, kind.value
    rival: Event | Purchase
    if rng.random() < 0.4:  # the other's colour is told, this one's is not
        rival = draw_purchase(rng, TRAIN, Purchase(person, thing, rng.choice(COLOURS)))
    else:
        rival = draw_event(rng, TRAIN, kind)
    told = [kind.tell(language), rival.tell(language)]
    rng.shuffle(told)
    who, colour, place = another(rng, PEOPLE, person), rng.choice(COLOURS), rng.choice(lexicon.PLACES)

    def fill(template: str, lang: str) -> str:
        return template.format(
            p=person.name(lang), o=thing.name(lang), q=who.name(lang), c=colour.name(lang), l=place.name(lang)
        )

    question, honest, made_up = (fill(template, language) for template in _UNTOLD[asked][language])
    foreign = fill(_UNTOLD[asked][other(language)][1], other(language))
    must = ("does not say", person.en, thing.en) if language == "en" else ("没有说", person.zh, thing.zh)
    return Example(
        "unknown", language, key, join([*told, question], language), Answer(honest, honest),
        Answer(made_up, made_up), Answer(foreign, foreign), must,
        names((*PEOPLE, *OBJECTS, *COLOURS, *lexicon.PLACES), language),
    )  # fmt: skip
