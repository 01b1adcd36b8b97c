"""Several questions about one matter: none of the exam's, every answer the right one."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from mini_chat.world.holdout import TRAIN, pair_split, split_of
from mini_chat.world.lexicon import LANGUAGES, PEOPLE
from mini_chat.world.skills.events import RELATIONS, Event, draw_story, is_of_one
from mini_chat.world.skills.series import compare_series, dictation, order_series, series, story_series

DRAWS = 400


def draws(name: str) -> Iterator[random.Random]:
    return (random.Random(f"{name} {number}") for number in range(DRAWS))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_story_tells_what_its_questions_ask_and_nothing_of_the_exam(language: str) -> None:
    for rng in draws("story"):
        made = story_series(rng, language)
        told = [
            Event(relation, person, value)
            for relation in RELATIONS
            for person in PEOPLE
            for value in relation.values
            if Event(relation, person, value).tell(language) in made.context
        ]
        assert len(told) == len({event.relation.name for event in told}) == len(made.questions) == 3
        assert all(event.split == TRAIN for event in told)
        answers = {answer for _, answer in made.questions}
        target = language if made.skill == "story" else {"en": "zh", "zh": "en"}[language]
        assert {answer.full for answer in answers} == {event.tell(target) for event in told}


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_sorted_once_up_and_once_down(language: str) -> None:
    made = [found for rng in draws("order") if (found := order_series(rng, language))]
    assert len(made) > DRAWS / 2
    for found in made:
        lists = [[int(digits) for digits in re.findall(r"\d+", answer.curt)] for _, answer in found.questions]
        assert sorted(lists) == sorted([sorted(lists[0]), sorted(lists[0], reverse=True)])
        assert split_of("order", *sorted(lists[0])) == TRAIN


def test_of_a_chain_the_most_and_the_least_are_asked_and_are_its_ends() -> None:
    for found in (compare_series(rng, "en") for rng in draws("compare")):
        first, second = re.findall(r"(\w+) is (\w+) than (\w+)\.", found.context)
        assert first[2] == second[0] and {pair_split(*first[::2]), pair_split(*second[::2])} == {TRAIN}
        assert {answer.curt for _, answer in found.questions} == {first[0] + ".", second[2] + "."}
        more = first[1] in ("taller", "older", "faster")
        most = first[0] if more else second[2]
        for question, answer in found.questions:
            asks_most = any(word in question for word in ("tallest", "oldest", "fastest"))
            assert answer.full.startswith(most) == asks_most


def test_a_dictation_is_written_down_as_it_is_heard() -> None:
    for rng in draws("dictation"):
        ((question, answer),) = dictation(rng, "en").questions
        assert question.endswith(answer.full)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_story_has_three_deeds_of_different_kinds_by_one_person_or_two(language: str) -> None:
    both = set()
    for rng in draws("told"):
        asked, told = draw_story(rng, TRAIN)
        assert asked in told and len({event.relation.name for event in told}) == 3
        assert len({event.person for event in told}) <= 2
        both.add(is_of_one(told))
    assert both == {True, False}


def test_every_kind_of_series_is_drawn() -> None:
    skills = {series(rng, language).skill for language in LANGUAGES for rng in draws("any")}
    assert skills == {"story", "language", "order", "compare"}
