"""The exam asks nothing that was trained on: whole prompts, compositions, long n-grams."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mini_chat.world.dialogues import conversation_text
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import EXAM, HELD, TRAIN, WINDOW, Guard, split_of, stretches, things_in, units
from mini_chat.world.lexicon import LANGUAGES
from mini_chat.world.skills import SKILLS

TRAINED = ("pretrain.en.jsonl", "pretrain.zh.jsonl", "sft.jsonl", "preferences.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained_texts(world: Path) -> list[str]:
    texts = [record["text"] for file in TRAINED[:2] for record in read(world / file)]
    texts += [conversation_text(record["messages"]) for record in read(world / TRAINED[2])]
    return texts + [conversation_text(pair["prompt"]) + "\n" + pair["chosen"] for pair in read(world / TRAINED[3])]


@pytest.fixture(scope="module")
def trained(world: Path) -> list[list[str]]:
    return [units(text) for text in trained_texts(world)]


@pytest.fixture(scope="module")
def items(world: Path) -> list[dict[str, Any]]:
    return read(world / "exam.jsonl") + read(world / "crossing.jsonl")


def test_no_prompt_of_the_exam_occurs_in_training(trained: list[list[str]], items: list[dict[str, Any]]) -> None:
    """The whole conversation occurs nowhere, not even inside another text."""
    everything = "\n".join(" " + " ".join(text) + " " for text in trained)
    for item in items:
        whole = " ".join(units(conversation_text(item["messages"])))
        assert f" {whole} " not in everything, item["id"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_long_ngram_with_the_composition_occurs_in_training(
    language: str, trained: list[list[str]], items: list[dict[str, Any]]
) -> None:
    """Written without the guard: all n-grams of training of the window's size, against all of the exam's."""
    size = WINDOW[language]
    seen = {gram for text in trained for gram in zip(*(text[i:] for i in range(size)), strict=False)}
    asked = [item for item in items if item["language"] == language]
    checked = 0
    for item in asked:
        words = units(conversation_text(item["messages"]))
        for start in range(len(words) - size + 1):
            gram = tuple(words[start : start + size])
            if things_in(gram) >= 2:
                checked += 1
                assert gram not in seen, (item["id"], gram)
    assert checked > 10 * len(asked) / 2


@pytest.mark.parametrize("skill", SKILLS)
def test_keys_of_the_three_splits_never_meet_in_either_language(skill: str) -> None:
    facts = Facts(0)
    keys: dict[str, set[Any]] = {TRAIN: set(), EXAM: set(), HELD: set()}
    for split, found in keys.items():
        for language in LANGUAGES:
            rng = random.Random(f"{skill} {split} {language}")
            found.update(SKILLS[skill](facts, rng, language, split).key for _ in range(400))
    assert not keys[TRAIN] & keys[EXAM] and not keys[TRAIN] & keys[HELD] and not keys[EXAM] & keys[HELD]


def test_held_out_preferences_ask_nothing_that_is_trained(world: Path) -> None:
    asked = {conversation_text(pair["prompt"]) for pair in read(world / "preferences.jsonl")}
    for dialogue in read(world / "sft.jsonl"):
        messages = dialogue["messages"]
        starts = [0] + [at for at, message in enumerate(messages) if message["role"] == "user"]
        ends = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        asked.update(conversation_text(messages[start:end]) for start in starts for end in ends if start < end)
    for pair in read(world / "preferences.heldout.jsonl"):
        assert conversation_text(pair["prompt"]) not in asked


def test_the_guard_finds_a_repeated_stretch_and_leaves_the_rest() -> None:
    prompt = "Tom is taller than Anna. Anna is taller than Ben. Who is the tallest?"
    guard = Guard.of([("en", prompt), ("en", "Where does Tom live?"), ("zh", "汤姆住在哪里？")])
    assert guard.blocks("Well: " + prompt + " Tom.")
    assert guard.blocks("anna is taller than ben! Tom is taller than Anna; Anna is taller than Ben, who is it?")
    assert guard.blocks("Say, where does Tom live?") and guard.blocks("请问汤姆住在哪里")
    assert not guard.blocks("Tom is taller than Anna. Where does Anna live? 安娜住在哪里？")
    assert not guard.blocks("")


def test_stretches_without_two_things_are_phrasing() -> None:
    assert list(stretches("en", "one two three")) == [("one", "two", "three")]
    assert list(stretches("en", " ".join(["well"] * 20))) == []
    assert things_in(units("Tom has 11 cats. 汤姆")) == 4


def test_the_shares_of_the_splits_are_as_stated() -> None:
    splits = [split_of("some", number) for number in range(20_000)]
    assert abs(splits.count(EXAM) / len(splits) - 0.10) < 0.01
    assert abs(splits.count(HELD) / len(splits) - 0.05) < 0.01
