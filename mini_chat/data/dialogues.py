"""Dialogues: what supervised fine-tuning reads, from the forms in common use.

`.jsonl`, `.json` (an array, or one object a line), `.yml` (ChatterBot) and `.parquet`, with in each record either

- `messages`, `conversations` or `conversation`: a list of turns in any form of `messages.py`; or
- `instruction`, `prompt`, `question` or `query` (with `input`, `system`, `history`) and
  `output`, `response`, `answer` or `completion`.

`language` and `skill` are passed on where a record has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mini_chat.data.inputs import Source
from mini_chat.data.messages import (
    PROMPT_KEYS,
    TURNS_KEYS,
    Message,
    answer_turns,
    label,
    language_of,
    no_form,
    opening,
    size_bytes,
    tidy,
)
from mini_chat.data.records import read_records
from mini_chat.data.streams import MAX_LINE_BYTES
from mini_chat.data.tally import SetAside, Tally

ANSWER_KEYS = ("output", "response", "answer", "completion")
NO_ASSISTANT_TURN = "no assistant turn"
PREFERENCE_PAIR = "a preference pair, not a dialogue"
UNDESIRABLE = "labelled undesirable"
TRAILING_USER_TURN = "trailing user turn taken off"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Perhaps a system message, then user and assistant in turn, ending with the assistant."""

    messages: list[Message]
    language: str
    source: str
    number: int
    skill: str | None = None


def read_dialogues(sources: Iterable[Source], tally: Tally, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Dialogue]:
    """Every usable dialogue of `sources`, in order; what is not usable is set aside and counted in `tally`.

    A source needs a `path`; its `language` (if it has one other than `auto`) holds for records that state none.

    Raises:
        UserError: a path that is missing, empty or unreadable, a source with nothing usable in it, an array that is
            over 100 MB or does not parse.
    """
    for record in read_records(sources, tally, max_line_bytes):
        repaired: Counter[str] = Counter()
        try:
            messages = _messages(record.value, repaired)
        except SetAside as why:
            tally.drop(why.reason, record.where, why.detail)
            continue
        texts = [message["content"] for message in messages]
        tally.repaired.update(+repaired)
        tally.keep(size_bytes(texts))
        yield Dialogue(messages, language_of(record, texts), str(record.path), record.number, label(record, "skill"))


def _messages(record: dict[str, Any], repaired: Counter[str]) -> list[Message]:
    """The dialogue in a record, ending with the assistant's turn.

    Raises:
        SetAside: there is none to learn from.
    """
    if "chosen" in record and "rejected" in record:
        raise SetAside(PREFERENCE_PAIR)
    if record.get("label") is False:  # KTO's mark: the answer is one not to give
        raise SetAside(UNDESIRABLE)
    turns = opening(record)
    if not any(record.get(key) is not None for key in TURNS_KEYS):
        if not any(record.get(key) is not None for key in PROMPT_KEYS):
            raise no_form(record, "messages, conversations or instruction")
        turns += answer_turns(record, next((key for key in ANSWER_KEYS if record.get(key) is not None), ANSWER_KEYS[0]))
    if not any(turn["role"] == "assistant" for turn in turns):
        raise SetAside(NO_ASSISTANT_TURN)
    messages = tidy(turns, repaired)
    if messages[-1]["role"] == "user":
        messages.pop()
        repaired[TRAILING_USER_TURN] += 1
    return messages
