"""Exam items and the one rule that marks a reply.

An item is a JSON object: `id`, `skill`, `language`, `messages` (the last is the user's), `answer` (the canonical full
answer), `reply_language`, `must` (each of these must appear), `must_not` (none of these may). `accept`, where present,
lists whole replies: the reply must be one of them. `final`, where present, is the last number the reply may contain.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mini_chat.errors import UserError

_FIELDS = {"id": str, "skill": str, "language": str, "messages": list, "answer": str, "must": list, "must_not": list}
# What a reply in one language does not contain; the assistant's own name is the same in both.
_FOREIGN = {"en": re.compile(r"[\u4e00-\u9fff]"), "zh": re.compile(r"[a-z]{2}")}
_PUNCTUATION = re.compile(r"[\s.,;:!?\"'。，、；：！？“”‘’]+")
_NUMBER = re.compile(r"\d+")


def check(item: Mapping[str, Any], reply: str) -> bool:
    """Whether `reply` answers `item`. Case does not matter, nor do spaces at the ends."""
    if "accept" in item:
        return any(_bare(reply) == _bare(answer) for answer in item["accept"])
    text = reply.lower()
    if _FOREIGN[item.get("reply_language", item["language"])].search(text.replace("mini-chat", "")):
        return False
    numbers = _NUMBER.findall(text)
    if "final" in item and numbers[-1:] != [item["final"]]:
        return False
    lists = [_NUMBER.findall(value) for value in item["must"]]
    if any(len(wanted) > 1 and wanted != numbers for wanted in lists):
        return False  # a list of numbers is all the numbers there are
    return all(_pattern(value).search(text) for value in item["must"]) and not any(
        _pattern(value).search(text) for value in item["must_not"]
    )


def _bare(text: str) -> str:
    """The text without case, punctuation and spaces (which stay between English words)."""
    words = _PUNCTUATION.sub(" ", text.lower()).strip()
    return re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", words)


@lru_cache(maxsize=1 << 16)
def _pattern(value: str) -> re.Pattern[str]:
    """Finds `value` as a word of its own: `1` is not in `11`, `cat` not in `catch`; Chinese has no such borders."""
    value = value.lower()
    left, right = (r"\d" if edge.isdigit() else "[a-z0-9]" if edge.isascii() else "" for edge in (value[0], value[-1]))
    return re.compile((f"(?<!{left})" if left else "") + re.escape(value) + (f"(?!{right})" if right else ""))


def score(items: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of right replies, `score[language][skill]` and `score[language]["all"]`."""
    marks: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, reply in zip(items, replies, strict=True):
        right = check(item, reply)
        for skill in (item["skill"], "all"):
            marks[item["language"]][skill].append(right)
    return {
        language: {skill: sum(right) / len(right) for skill, right in skills.items()}
        for language, skills in marks.items()
    }


def read_items(path: Path | str) -> list[dict[str, Any]]:
    """The items of an exam file.

    Raises:
        UserError: the file is missing, or a line is no exam item; the message names the line.
    """
    items = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    item = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error}); make the exam again") from error
                wrong = (
                    [name for name, kind in _FIELDS.items() if not isinstance(item.get(name), kind)]
                    if isinstance(item, dict)
                    else list(_FIELDS)
                )
                if wrong:
                    raise UserError(
                        f"{path}, line {number}: no exam item ({', '.join(wrong)} missing or of the wrong type); "
                        "make the exam again"
                    )
                items.append(item)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the exam ({error}); check the path") from error
    return items
