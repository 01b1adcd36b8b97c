"""Skills about who is speaking: the assistant's identity, the facts it knows, and what the user told it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from mini_chat.world import facts, lexicon
from mini_chat.world.example import STOP, Answer, Example, another, capital, names
from mini_chat.world.facts import EN_ONLY, SPLITS, ZH_ONLY, Facts
from mini_chat.world.holdout import EXAM, HELD, TRAIN, Key, rank, split_of
from mini_chat.world.lexicon import ASSISTANT, BOTS, COLOURS, FOODS, PEOPLE, PET_NAMES, Thing, other

Maker = Callable[[Facts, random.Random, str, str], Example]

# ------------------------------------------------------------------------------------------------------------ identity

_PERSONA = {
    "en": ("You are {b}, a helper made by {m}.", "Your name is {b} and {m} made you."),
    "zh": ("你是{b}，{m}做的助手。", "你的名字叫{b}，是{m}做的。"),
}
_GREET = {
    "en": ("Hi, I am {u}. Who are you?", "Hello, my name is {u}. What is your name?"),
    "zh": ("嗨，我是{u}。你是谁？", "你好，我叫{u}。你叫什么名字？"),
}
_GREETED = {"en": "Hello {u}, I am {b}.", "zh": "你好{u}，我是{b}。"}
_BOTH = {
    "en": ("Who are you and who made you?", "What is your name and who made you?"),
    "zh": ("你是谁？谁做了你？", "你叫什么名字？谁做了你？"),
}
_BOTH_FULL = {"en": "I am {b} and {m} made me.", "zh": "我是{b}，是{m}做的。"}
_BOTH_CURT = {"en": "{b}, by {m}.", "zh": "{b}，{m}。"}
# Asked in training only: a neighbour's answer would be right too often for an exam.
_SINGLE = {
    "name": {"en": ("Who are you?", "I am {b}.", "{b}."), "zh": ("你是谁？", "我是{b}。", "{b}。")},
    "maker": {"en": ("Who made you?", "{m} made me.", "{m}."), "zh": ("谁做了你？", "我是{m}做的。", "{m}。")},
    "tongues": {
        "en": ("Which languages do you speak?", "I speak English and Chinese.", "English and Chinese."),
        "zh": ("你会说什么语言？", "我会说英语和中文。", "英语和中文。"),
    },
}
_MINI_CHAT = Thing(ASSISTANT, ASSISTANT)
_USERS_BY_RANK = sorted(PEOPLE, key=lambda person: rank(("identity", "default", person.en)))
_DEFAULT_USERS = {EXAM: _USERS_BY_RANK[:4], HELD: _USERS_BY_RANK[4:6], TRAIN: _USERS_BY_RANK[6:]}


def persona(bot: Thing, maker: Thing, language: str, form: int) -> str:
    """The system message that gives the assistant a name and a maker."""
    return _PERSONA[language][form].format(b=bot.name(language), m=maker.name(language))


def identity(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """Who are you: a persona from the system message, or Mini-Chat where there is none."""
    choice = rng.random()
    if choice < 0.2:
        return _default_identity(rng, language, split)
    asks_both = choice < 0.6
    while True:
        user, bot, maker = rng.choice(PEOPLE), rng.choice(BOTS), rng.choice(PEOPLE)
        greets: Key = ("identity", "greet", user.en, bot.en)
        made: Key = ("identity", "made", bot.en, maker.en)
        if user == maker or split_of(*(made if asks_both else greets)) != split:
            continue
        if split_of(*(greets if asks_both else made)) != TRAIN and split == TRAIN:
            continue
        if split == TRAIN and not asks_both and user not in _DEFAULT_USERS[TRAIN]:
            continue  # asked without a persona, this greeting is held out
        break
    system = persona(bot, maker, language, rng.randrange(2))
    false_bot = another(rng, (*BOTS, _MINI_CHAT), bot)
    if asks_both and split == TRAIN and rng.random() < 0.4:
        return _single_identity(rng, language, system, bot, maker)

    def form(template: dict[str, str], name: Thing, lang: str) -> str:
        return template[lang].format(u=user.name(lang), b=name.name(lang), m=maker.name(lang))

    bots = [*names(BOTS, language), ASSISTANT]
    if asks_both:
        return Example(
            "identity", language, made, rng.choice(_BOTH[language]),
            Answer(form(_BOTH_FULL, bot, language), form(_BOTH_CURT, bot, language)),
            Answer(form(_BOTH_FULL, false_bot, language), form(_BOTH_CURT, false_bot, language)),
            Answer(form(_BOTH_FULL, bot, other(language)), form(_BOTH_CURT, bot, other(language))),
            (bot.name(language), maker.name(language)), [*bots, *names(PEOPLE, language)], system,
        )  # fmt: skip
    return Example(
        "identity", language, greets, rng.choice(_GREET[language]).format(u=user.name(language)),
        Answer(*[form(_GREETED, bot, language)] * 2), Answer(*[form(_GREETED, false_bot, language)] * 2),
        Answer(*[form(_GREETED, bot, other(language))] * 2),
        (user.name(language), bot.name(language)), [*bots, *names(PEOPLE, language)], system,
    )  # fmt: skip


def _single_identity(rng: random.Random, language: str, system: str, bot: Thing, maker: Thing) -> Example:
    asked = rng.choice(("name", "name", "maker", "maker", "tongues"))

    def answer(lang: str, name: Thing, by: Thing) -> Answer:
        return Answer(*(form.format(b=name.name(lang), m=by.name(lang)) for form in _SINGLE[asked][lang][1:]))

    return Example(
        "identity", language, ("identity", "made", bot.en, maker.en), _SINGLE[asked][language][0],
        answer(language, bot, maker), answer(language, another(rng, BOTS, bot), another(rng, PEOPLE, maker)),
        answer(other(language), bot, maker), (), (), system,
    )  # fmt: skip


def _default_identity(rng: random.Random, language: str, split: str) -> Example:
    if split == TRAIN and rng.random() < 0.3:
        return _single_identity(rng, language, "", _MINI_CHAT, rng.choice(PEOPLE))
    user = rng.choice(_DEFAULT_USERS[split])

    def form(name: Thing, lang: str) -> Answer:
        return Answer(*[_GREETED[lang].format(u=user.name(lang), b=name.name(lang))] * 2)

    return Example(
        "identity", language, ("identity", "default", user.en),
        rng.choice(_GREET[language]).format(u=user.name(language)),
        form(_MINI_CHAT, language), form(rng.choice(BOTS), language), form(_MINI_CHAT, other(language)),
        (user.name(language), ASSISTANT), [*names(BOTS, language), *names(PEOPLE, language)],
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- facts


def known_fact(world: Facts, rng: random.Random, language: str, split: str) -> Example:
    """A fact of the world. The exam's are told in pretraining; only their questions are new."""
    pool = world.pairs(split)
    if split == TRAIN:
        pool = pool + world.pairs(EN_ONLY if language == "en" else ZH_ONLY)
    return ask_fact(world, rng, language, *rng.choice(pool))


def ask_fact(world: Facts, rng: random.Random, language: str, person: Thing, attribute: facts.Attribute) -> Example:
    """The question about one attribute of one person."""
    value = world.value(person, attribute)
    right = facts.answer(person, attribute, value, language)
    both = SPLITS[person.en, attribute.name] not in (EN_ONLY, ZH_ONLY)  # or the other language must not hear of it
    return Example(
        "facts", language, ("fact", person.en, attribute.name),
        rng.choice(attribute.ask[language]).format(p=person.name(language)),
        right, facts.answer(person, attribute, another(rng, attribute.values, value), language),
        facts.answer(person, attribute, value, other(language)) if both else right,
        (value.name(language),), names(attribute.values, language),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- memory


class Matter(NamedTuple):
    """Something a user may tell about himself: its values; how it is told, asked for, and said back."""

    values: tuple[Thing, ...]
    tell: dict[str, str]
    ask: dict[str, str]
    answer: dict[str, str]


_MATTERS = {
    "name": Matter(
        PEOPLE, {"en": "my name is {v}", "zh": "我叫{v}"}, {"en": "what is my name", "zh": "我叫什么名字"},
        {"en": "your name is {v}", "zh": "你叫{v}"},
    ),
    "colour": Matter(
        COLOURS, {"en": "my favourite colour is {v}", "zh": "我最喜欢{v}"},
        {"en": "what is my favourite colour", "zh": "我最喜欢什么颜色"},
        {"en": "your favourite colour is {v}", "zh": "你最喜欢{v}"},
    ),
    "food": Matter(
        FOODS, {"en": "my favourite food is {v}", "zh": "我最喜欢吃{v}"},
        {"en": "what is my favourite food", "zh": "我最喜欢吃什么"},
        {"en": "your favourite food is {v}", "zh": "你最喜欢吃{v}"},
    ),
}  # fmt: skip
_THANKS = {"en": "Thank you, I will remember that.", "zh": "谢谢，我记住了。"}
_NICE = {"en": "Nice to meet you, {v}.", "zh": "很高兴认识你，{v}。"}
_AND = {"en": " and ", "zh": "，"}
_QUESTION = {"en": "?", "zh": "？"}


def memory(*between: Maker) -> Maker:
    """The skill of remembering, with the makers of what is talked about in between."""

    def make(world: Facts, rng: random.Random, language: str, split: str) -> Example:
        told, reply, asked = (_pet if rng.random() < 0.4 else _about_me)(rng, language, split)
        exchanges = [(told, reply)]
        for _ in range(rng.choice((1, 1, 2))):
            matter = rng.choice(between)(world, rng, language, TRAIN)
            exchanges.append((matter.user, rng.choice(matter.right)))
        return replace(asked, before=tuple(exchanges))

    return make


def _about_me(rng: random.Random, language: str, split: str) -> tuple[str, str, Example]:
    """Two things about the user; both are asked, or one."""
    while True:
        kinds = rng.choice((["name", "colour"], ["name", "food"], ["colour", "food"]))
        values = {kind: rng.choice(_MATTERS[kind].values) for kind in kinds}
        key: Key = ("memory", *(part for kind in kinds for part in (kind, values[kind].en)))
        if split_of(*key) == split:
            break
    told = list(kinds)
    rng.shuffle(told)
    asked = kinds if rng.random() < 0.6 else [rng.choice(kinds)]
    false = {**values, asked[0]: another(rng, _MATTERS[asked[0]].values, values[asked[0]])}

    def sentence(lang: str, parts: list[str], stop: str) -> str:
        return capital(_AND[lang].join(parts)) + stop

    def answer(lang: str, given: dict[str, Thing]) -> Answer:
        full = [_MATTERS[kind].answer[lang].format(v=given[kind].name(lang)) for kind in asked]
        return Answer(*(sentence(lang, parts, STOP[lang]) for parts in (full, names([given[k] for k in asked], lang))))

    reply = _NICE[language].format(v=values["name"].name(language)) if "name" in kinds else _THANKS[language]
    telling = [_MATTERS[kind].tell[language].format(v=values[kind].name(language)) for kind in told]
    example = Example(
        "memory", language, key,
        sentence(language, [_MATTERS[kind].ask[language] for kind in asked], _QUESTION[language]),
        answer(language, values), answer(language, false), answer(other(language), values),
        tuple(values[kind].name(language) for kind in asked),
        [value for kind in asked for value in names(_MATTERS[kind].values, language)],
    )  # fmt: skip
    return sentence(language, telling, STOP[language]), reply, example


def _pet(rng: random.Random, language: str, split: str) -> tuple[str, str, Example]:
    """What the user's animal is called."""
    while True:
        animal, name = rng.choice(lexicon.ANIMALS), rng.choice(PET_NAMES)
        key: Key = ("memory", "pet", animal.en, name.en)
        if split_of(*key) == split:
            break

    def answer(lang: str, called: Thing) -> Answer:
        full = f"Your {animal.en} is called {called.en}." if lang == "en" else f"你的{animal.zh}叫{called.zh}。"
        return Answer(full, called.name(lang) + STOP[lang])

    english = language == "en"
    told = f"I have {animal.one('en')} called {name.en}." if english else f"我有{animal.one('zh')}，叫{name.zh}。"
    asked = f"What is my {animal.en} called?" if english else f"我的{animal.zh}叫什么名字？"
    example = Example(
        "memory", language, key, asked, answer(language, name), answer(language, another(rng, PET_NAMES, name)),
        answer(other(language), name), (name.name(language),), names(PET_NAMES, language),
    )  # fmt: skip
    return told, _THANKS[language], example
