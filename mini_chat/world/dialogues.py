"""Dialogues, preference pairs and the exam, all made from the skills' examples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mini_chat.world.example import Example, Message
from mini_chat.world.facts import EN_ONLY, ZH_ONLY, Facts
from mini_chat.world.holdout import EXAM, TRAIN, Guard
from mini_chat.world.lexicon import BOTS, LANGUAGES, PEOPLE
from mini_chat.world.prose import round_of
from mini_chat.world.skills import SKILLS, WEIGHTS
from mini_chat.world.skills.events import join
from mini_chat.world.skills.personal import ask_fact, persona
from mini_chat.world.skills.series import series

Record = dict[str, Any]
_SERIES = 0.3  # of the dialogues ask several things about one matter
_TOLD = 0.06  # state facts, which would be forgotten otherwise: pretraining told them long ago
_CHAINED = 0.15  # of the dialogues, besides those of the memory skill, have several turns on different ones
_GIVEN_PERSONA = 0.1  # of the dialogues on other matters open with a system message all the same
_TELL = {"en": "Tell me something about a few people.", "zh": "说说几个人的事吧。"}
_NAMES, _WEIGHTS = list(WEIGHTS), list(WEIGHTS.values())
_PATIENCE = 400  # draws for each exam item before a skill is taken to have no more


def conversation_text(messages: list[Message]) -> str:
    """All that is said, one message a line: what the guard and the baselines look at."""
    return "\n".join(message["content"] for message in messages)


def dialogues(world: Facts, seed: int, guard: Guard) -> Iterator[Record | None]:
    """Endless training dialogues in both languages; None stands for one that the guard has dropped."""
    rng = random.Random(f"{seed} sft")
    while True:
        language, kind = rng.choice(LANGUAGES), rng.random()
        if kind < _SERIES:
            record = _questions(rng, language)
            yield None if guard.blocks(conversation_text(record["messages"])) else record
            continue
        if kind < _SERIES + _TOLD:
            yield _telling(world, rng, language)
            continue
        chained = kind < _SERIES + _TOLD + _CHAINED
        examples = _chain(world, rng, language) if chained else [_make(world, rng, language)]
        messages: list[Message] = []
        for example in examples:
            messages += [*example.prompt(), {"role": "assistant", "content": rng.choice(example.right)}]
        if messages[0]["role"] != "system" and examples[0].skill != "identity" and rng.random() < _GIVEN_PERSONA:
            content = persona(rng.choice(BOTS), rng.choice(PEOPLE), language, rng.randrange(2))
            messages.insert(0, {"role": "system", "content": content})
        blocked = guard.blocks(conversation_text(messages))
        yield None if blocked else {"messages": messages, "skill": examples[-1].skill, "language": language}


def _questions(rng: random.Random, language: str) -> Record:
    made = series(rng, language)
    messages: list[Message] = []
    for number, (question, answer) in enumerate(made.questions):
        opening = [made.context] if made.context and not number else []
        messages.append({"role": "user", "content": join([*opening, question], language)})
        messages.append({"role": "assistant", "content": rng.choice(answer)})
    return {"messages": messages, "skill": made.skill, "language": language}


def _telling(world: Facts, rng: random.Random, language: str) -> Record:
    messages = [{"role": "user", "content": _TELL[language]}]
    messages.append({"role": "assistant", "content": round_of(world, rng, language)})
    return {"messages": messages, "skill": "telling", "language": language}


def _make(world: Facts, rng: random.Random, language: str) -> Example:
    return SKILLS[rng.choices(_NAMES, _WEIGHTS)[0]](world, rng, language, TRAIN)


def _chain(world: Facts, rng: random.Random, language: str) -> list[Example]:
    """Two or three questions on different matters; only the first may bring a system message or a memory."""
    examples = [_make(world, rng, language)]
    while len(examples) < 2 or (len(examples) < 3 and rng.random() < 0.4):
        example = _make(world, rng, language)
        if example.skill not in ("identity", "memory") and example.skill not in {before.skill for before in examples}:
            examples.append(example)
    return examples


# --------------------------------------------------------------------------------------------------------- preferences

FULL, RIGHT = "full sentence over curt", "right over wrong"
ASKED, HONEST = "asked language over other language", "honest don't-know over made-up"
_KINDS = {FULL: 50, RIGHT: 20, ASKED: 15, HONEST: 15}


def preferences(world: Facts, seed: int, split: str, guard: Guard) -> Iterator[Record | None]:
    """Endless preference pairs of one split; None stands for one that the guard has dropped."""
    rng = random.Random(f"{seed} preferences {split}")
    while True:
        kind, language = rng.choices(list(_KINDS), list(_KINDS.values()))[0], rng.choice(LANGUAGES)
        skill = "unknown" if kind == HONEST else rng.choices(_NAMES, _WEIGHTS)[0]
        example = SKILLS[skill](world, rng, language, split)
        chosen = example.right.full
        if kind == FULL:
            rejected = example.right.curt
        elif kind == ASKED:
            rejected = example.foreign.full
        else:
            style = int(rng.random() < 0.25)  # mostly in the style that the other pairs teach
            chosen, rejected = example.right[style], example.wrong[style]
        if chosen == rejected:  # the example has no such pair
            continue
        prompt = example.prompt()
        blocked = guard.blocks(conversation_text([*prompt, {"role": "assistant", "content": chosen}]))
        yield (
            None
            if blocked
            else {"prompt": prompt, "chosen": chosen, "rejected": rejected, "kind": kind, "language": language}
        )


# ---------------------------------------------------------------------------------------------------------------- exam


def exam(world: Facts, seed: int, per_skill: int) -> Iterator[Record]:
    """Up to `per_skill` different items of each skill and language (fewer where the world has no more)."""
    for language in LANGUAGES:
        for skill, make in SKILLS.items():
            rng = random.Random(f"{seed} exam {language} {skill}")
            seen: set[str] = set()
            for _ in range(per_skill * _PATIENCE):
                if len(seen) == per_skill:
                    break
                example = make(world, rng, language, EXAM)
                question = conversation_text(example.prompt())
                if question not in seen:
                    yield example.item(f"{language}-{skill}-{len(seen):03d}")
                    seen.add(question)


def crossing(world: Facts, seed: int) -> Iterator[Record]:
    """Facts told in one language, asked in the other: what crosses over between them."""
    for language, split in (("en", ZH_ONLY), ("zh", EN_ONLY)):
        rng = random.Random(f"{seed} crossing {language}")
        for person, attribute in world.pairs(split):
            item = ask_fact(world, rng, language, person, attribute).item(
                f"{language}-crossing-{person.en.lower()}-{attribute.name}"
            )
            yield {**item, "skill": "crossing"}
