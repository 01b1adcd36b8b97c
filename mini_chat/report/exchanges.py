"""Which of the exam's questions and answers the report shows: always the first of a kind, none for its looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Item = dict[str, Any]
MISTAKES_OF_A_SKILL = 2
SHOWN = 3  # exchanges per language on the report card


def exam_exchanges(items: Sequence[Item], replies: dict[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The first item of every language and skill, with every stage's reply and whether it is right."""
    from mini_chat.evaluate.exam_items import check

    seen: set[tuple[str, str]] = set()
    rows = []
    for number, item in enumerate(items):
        kind = (item["language"], item["skill"])
        if kind in seen:
            continue
        seen.add(kind)
        of_stage = {stage: list(texts)[number] for stage, texts in replies.items()}
        right = {stage: bool(check(item, reply)) for stage, reply in of_stage.items()}
        rows.append({**shown(item), "replies": of_stage, "right": right})
    return rows


def exam_mistakes(items: Sequence[Item], replies: Sequence[str]) -> list[dict[str, Any]]:
    """The first wrong answers of every language and skill."""
    from mini_chat.evaluate.exam_items import check

    counts: dict[tuple[str, str], int] = {}
    rows = []
    for item, reply in zip(items, replies, strict=True):
        kind = (item["language"], item["skill"])
        if counts.get(kind, 0) < MISTAKES_OF_A_SKILL and not check(item, reply):
            counts[kind] = counts.get(kind, 0) + 1
            rows.append({**shown(item), "reply": reply})
    return rows


def shown(item: Item) -> dict[str, Any]:
    """What of an item is for the eye."""
    return {key: item[key] for key in ("language", "skill", "messages", "answer")}


def for_the_card(exchanges: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three exchanges of each language, of different skills, one of them of several turns if there is one."""
    skills = list(dict.fromkeys(row["skill"] for row in exchanges))
    chosen: list[dict[str, Any]] = []
    for shift, language in enumerate(sorted({row["language"] for row in exchanges})):
        of_skill = {row["skill"]: row for row in exchanges if row["language"] == language}
        step = max(1, len(skills) // SHOWN)
        wanted = [skills[(place * step + shift) % len(skills)] for place in range(min(SHOWN, len(skills)))]
        rows = [of_skill[skill] for skill in dict.fromkeys(wanted) if skill in of_skill]
        if rows and not any(several_turns(row) for row in [*chosen, *rows]):
            several = [row for row in of_skill.values() if several_turns(row)]
            rows[-1:] = several[:1] or rows[-1:]
        chosen += rows
    return chosen


def several_turns(row: dict[str, Any]) -> bool:
    """Whether the user spoke more than once."""
    return sum(message["role"] == "user" for message in row["messages"]) > 1
