"""Preference pairs: what DPO and its kin read, from the forms in common use.

`.jsonl`, `.json`, `.yml` and `.parquet`, with in each record the two answers (`chosen` and `rejected`, or
`response_chosen` and `response_rejected`) as strings, messages or lists of messages, and the prompt as

- `prompt`, `question`, `query` or `instruction` (with `input`, `system`, `history`): a string or messages; or
- `messages`, `conversations` or `conversation` (LLaMA-Factory's form); or
- what both answers begin with, when they are whole dialogues (TRL's implicit prompt).

`language`, and `kind` or else `skill`, are passed on where a record has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mini_chat.data.inputs import Source
from mini_chat.data.messages import CONTENT_EMPTY, Message, answer_turns, label, language_of, opening, size_bytes, tidy
from mini_chat.data.records import check_text, read_records
from mini_chat.data.streams import MAX_LINE_BYTES
from mini_chat.data.tally import SetAside, Tally

ANSWERS_EQUAL = "chosen equals rejected"
ANSWER_NOT_ONE_TURN = "an answer is not one assistant turn"
NO_PROMPT = "no prompt"
PROMPT_ENDS_WITH_ASSISTANT = "the prompt does not end with a user turn"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt that ends with a user turn, the better answer to it and the worse."""

    prompt: list[Message]
    chosen: str
    rejected: str
    language: str
    source: str
    number: int
    kind: str | None = None


def read_preferences(
    sources: Iterable[Source], tally: Tally, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[PreferencePair]:
    """Every usable pair of `sources`, in order; what is not usable is set aside and counted in `tally`.

    A source needs a `path`; its `language` (if it has one other than `auto`) holds for records that state none.

    Raises:
        UserError: a path that is missing, empty or unreadable, a source with nothing usable in it, an array that is
            over 100 MB or does not parse.
    """
    for record in read_records(sources, tally, max_line_bytes):
        repaired: Counter[str] = Counter()
        try:
            prompt, chosen, rejected = _pair(record.value, repaired)
        except SetAside as why:
            tally.drop(why.reason, record.where, why.detail)
            continue
        texts = [message["content"] for message in prompt] + [chosen]
        language = language_of(record, texts)
        tally.repaired.update(+repaired)
        tally.keep(size_bytes([*texts, rejected]))
        kind = label(record, "kind", "skill")
        yield PreferencePair(prompt, chosen, rejected, language, str(record.path), record.number, kind)


def _pair(record: dict[str, Any], repaired: Counter[str]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected of a record.

    Raises:
        SetAside: one is missing or cannot be used, or the answers are the same.
    """
    stem = "response_" if "response_chosen" in record else ""
    chosen, rejected = answer_turns(record, f"{stem}chosen"), answer_turns(record, f"{stem}rejected")
    prompt = opening(record)

    # Answers given as whole dialogues begin with the prompt; their last turns are the answers.
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared:
        start, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        prompt = start if not prompt or prompt[-1] in start else prompt + start
    if not prompt:
        raise SetAside(NO_PROMPT)
    prompt = tidy(prompt, repaired)
    if prompt[-1]["role"] != "user":
        raise SetAside(PROMPT_ENDS_WITH_ASSISTANT)

    better, worse = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    if better == worse:
        raise SetAside(ANSWERS_EQUAL)
    return prompt, better, worse


def _answer(turns: list[Message], which: str) -> str:
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise SetAside(ANSWER_NOT_ONE_TURN, f"{which}: {', '.join(turn['role'] for turn in turns)[:60] or 'none'}")
    content = turns[0]["content"]
    check_text(content)
    if not content:
        raise SetAside(CONTENT_EMPTY, which)
    return content
