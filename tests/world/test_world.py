"""The written world: the same bytes for a seed, a closed vocabulary, sound records."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mini_chat.world import lexicon
from mini_chat.world.facts import ATTRIBUTES, EN_ONLY, SPLITS, ZH_ONLY, Facts
from mini_chat.world.generate import WorldSizes, main, write_world
from mini_chat.world.skills import SKILLS, WEIGHTS

SMALL = WorldSizes(300, 300, 100, 50, 4)
FILES = ["exam.jsonl", "crossing.jsonl", "pretrain.en.jsonl", "pretrain.zh.jsonl", "sft.jsonl", "preferences.jsonl",
         "preferences.heldout.jsonl", "world.json"]  # fmt: skip
MOST_ENGLISH_WORDS = 420
MOST_CHINESE_CHARACTERS = 450


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def said(record: dict[str, Any]) -> str:
    """All text of a record of any of the files."""
    messages = record.get("messages", []) + record.get("prompt", [])
    fields = [record.get(name, "") for name in ("text", "chosen", "rejected", "answer")]
    return "\n".join([*(message["content"] for message in messages), *fields])


def test_one_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_world(tmp_path / name, seed, SMALL)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes(), file


def test_the_command_writes_every_file_in_the_size_asked_for(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--pretrain-documents", "11", "--sft-dialogues", "7", "--preferences", "5"]) == 0
    lengths = {file: len(read(tmp_path / file)) for file in FILES if file.endswith("jsonl")}
    assert (lengths["pretrain.en.jsonl"], lengths["pretrain.zh.jsonl"]) == (6, 5)
    assert (lengths["sft.jsonl"], lengths["preferences.jsonl"]) == (7, 5)
    assert not list(tmp_path.glob("*.partial"))


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "world")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_skill_and_language_fills_its_part_of_the_exam(world: Path) -> None:
    counts = Counter((item["skill"], item["language"]) for item in read(world / "exam.jsonl"))
    assert counts == {(skill, language): 40 for skill in SKILLS for language in lexicon.LANGUAGES}
    assert SKILLS.keys() == WEIGHTS.keys()
    assert len({item["id"] for item in read(world / "exam.jsonl")}) == sum(counts.values())


def test_the_vocabulary_is_closed_and_small(world: Path) -> None:
    text = "\n".join(said(record) for file in FILES[:-1] for record in read(world / file))
    assert len(set(re.findall(r"[a-z]+", text.lower()))) <= MOST_ENGLISH_WORDS
    assert len(set(re.findall(r"[\u4e00-\u9fff]", text))) <= MOST_CHINESE_CHARACTERS
    exam = "\n".join(said(record) for record in read(world / "exam.jsonl"))
    trained = "\n".join(said(record) for file in FILES[2:5] for record in read(world / file))
    for unit in (r"[A-Za-z]+", r"[\u4e00-\u9fff]"):
        assert set(re.findall(unit, exam)) <= set(re.findall(unit, trained))


def test_forms_are_one_to_one_and_none_hides_in_another_of_its_kind() -> None:
    tables = [value for value in vars(lexicon).values() if isinstance(value, tuple)]
    kinds = [table for table in tables if isinstance(table[0], lexicon.Thing)]
    assert len(kinds) == 12
    for kind in kinds:
        assert len({thing.en for thing in kind}) == len({thing.zh for thing in kind}) == len(kind)
        assert not [(a.zh, b.zh) for a in kind for b in kind if a != b and a.zh in b.zh]


def test_dialogues_are_balanced_in_style_language_and_number_of_turns(world: Path) -> None:
    dialogues = read(world / "sft.jsonl")
    turns = [sum(message["role"] == "user" for message in dialogue["messages"]) for dialogue in dialogues]
    assert 0.45 < sum(count > 1 for count in turns) / len(turns) < 0.55
    assert 0.45 < sum(dialogue["language"] == "en" for dialogue in dialogues) / len(dialogues) < 0.55
    order = [d["messages"][-1]["content"] for d in dialogues if d["skill"] == "order" and d["language"] == "en"]
    assert 0.4 < sum(reply.startswith("The order is") for reply in order) / len(order) < 0.6
    for dialogue in dialogues:
        roles = [message["role"] for message in dialogue["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and len(roles) >= 2


def test_preference_pairs_differ_and_half_of_them_are_about_style(world: Path) -> None:
    pairs = read(world / "preferences.jsonl")
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    kinds = Counter(pair["kind"] for pair in pairs)
    assert len(kinds) == 4 and 0.42 < kinds["full sentence over curt"] / len(pairs) < 0.58


def test_a_fact_told_in_one_language_is_never_told_or_asked_in_the_other(world: Path) -> None:
    facts = Facts(0)
    for language, split in (("en", ZH_ONLY), ("zh", EN_ONLY)):
        texts = [said(record) for file in FILES[2:] if file.endswith("jsonl") for record in read(world / file)]
        trained = "\n".join(texts)
        for person, attribute in facts.pairs(split):
            forbidden = [form.format(p=person.name(language)) for form in attribute.ask[language]]
            told = [facts.tell(person, attribute, language, form) for form in range(3)]
            assert told == [None] * 3
            assert not [question for question in forbidden if question in trained]
            value = facts.value(person, attribute).name(language)
            for form in attribute.tell[language]:
                begin = form[: form.index("{v}" if "{v}" in form else "{a}")].format(p=person.name(language))
                assert not re.search(rf"{re.escape(begin)}(an? )?{value}\b", trained) or language == "zh"


def test_shares_of_the_facts_are_exact() -> None:
    counts = Counter(SPLITS.values())
    assert counts == {"train": 14 * 5, "exam": 5 * 5, EN_ONLY: 2 * 5, ZH_ONLY: 2 * 5, "held": 5}
    assert len(ATTRIBUTES) == 5


def test_every_fact_of_the_exam_is_told_often_in_both_languages(world: Path) -> None:
    facts = Facts(0)
    for language in lexicon.LANGUAGES:
        text = (world / f"pretrain.{language}.jsonl").read_text(encoding="utf-8")
        for person, attribute in facts.pairs("exam"):
            told = sum(text.count(facts.tell(person, attribute, language, form) or "?") for form in range(3))
            assert told >= 20, (person, attribute.name)
