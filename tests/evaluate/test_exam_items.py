"""Marking: the right answer passes in both styles, whatever else fails."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat.errors import UserError
from mini_chat.evaluate.exam_items import check, read_items
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import EXAM
from mini_chat.world.lexicon import LANGUAGES
from mini_chat.world.skills import SKILLS

FACTS = Facts(0)


@given(st.sampled_from(sorted(SKILLS)), st.sampled_from(LANGUAGES), st.integers(0, 10**9))
def test_full_and_curt_pass_and_wrong_empty_or_foreign_replies_fail(skill: str, language: str, seed: int) -> None:
    example = SKILLS[skill](FACTS, random.Random(seed), language, EXAM)
    item = example.item("x")
    for right in example.right:
        assert check(item, right) and check(item, f"  {right.lower()}\n")
    for wrong in example.wrong:
        assert not check(item, wrong)
    assert not check(item, example.foreign.full)
    assert not check(item, "")


@given(st.sampled_from(sorted(SKILLS)), st.sampled_from(LANGUAGES), st.integers(0, 10**9))
def test_right_and_wrong_together_fail(skill: str, language: str, seed: int) -> None:
    """Naming several candidates is no answer."""
    example = SKILLS[skill](FACTS, random.Random(seed), language, EXAM)
    assert not check(example.item("x"), f"{example.right.full} {example.wrong.full}")


@given(st.sampled_from(LANGUAGES), st.integers(0, 10**9))
def test_another_value_of_the_kind_fails(language: str, seed: int) -> None:
    example = SKILLS["facts"](FACTS, random.Random(seed), language, EXAM)
    item = example.item("x")
    assert len(item["must_not"]) >= 7  # type: ignore[arg-type]
    for value in item["must_not"]:  # type: ignore[attr-defined]
        assert not check(item, example.right.full.replace(item["must"][0], value))  # type: ignore[index]


def item(must: list[str], must_not: list[str] | None = None, language: str = "en", **more: object) -> dict[str, object]:
    return {"language": language, "must": must, "must_not": must_not or [], **more}


@pytest.mark.parametrize(
    ("asked", "reply", "right"),
    [
        (item(["1"]), "There is 1 cat.", True),
        (item(["1"]), "11", False),
        (item(["1"], language="zh"), "有11只猫。", False),
        (item(["1"], language="zh"), "有1只猫。", True),
        (item(["cat"]), "A CAT.", True),
        (item(["cat"]), "She catches it.", False),
        (item(["8"], ["1"]), "18 8", True),
        (item(["8"], ["not"]), "It is not 8.", False),
        (item(["3, 5, 8"]), "The order is 3, 5, 8.", True),
        (item(["3, 5, 8"]), "3, 5, 8, 9", False),
        (item(["3, 5, 8"]), "1, 3, 5, 8", False),
        (item(["3、5、8"], language="zh"), "13、5、8。", False),
        (item(["3、5、8"], language="zh"), "1、3、5、8。", False),
        (item(["8"], final="8"), "3 + 5 = 8 pens.", True),
        (item(["8"], final="8"), "3 + 8 = 5 pens.", False),
        (item([], accept=["Tom has a red cat."]), "tom has a red cat", True),
        (item([], accept=["Tom has a red cat."]), "Tom has a red cat and a dog.", False),
        (item([], accept=["汤姆有一只猫。"]), "汤姆 有一只猫", True),
        (item(["猫"], language="zh"), "A cat 猫", False),
        (item(["Mini-Chat"], language="zh"), "我是Mini-Chat。", True),
        (item(["cat"]), "cat 猫", False),
    ],
)
def test_borders_of_words_and_numbers(asked: dict[str, object], reply: str, right: bool) -> None:
    assert check(asked, reply) is right


@pytest.mark.parametrize(
    "content", [b'{"id": "x"}\n', b"[]\n", b"{\n", b'\xff\xfe{"id": 3}\n'], ids=["fields", "list", "json", "utf-8"]
)
def test_a_broken_exam_file_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"exam\.jsonl") as raised:
        read_items(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="cannot read"):
        read_items(tmp_path / "missing.jsonl")
