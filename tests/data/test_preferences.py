"""What `read_preferences` promises: the common forms brought to one, everything else set aside under its reason."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.preferences import PreferencePair, read_preferences
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError

REAL_DATA = Path(os.environ.get("MINI_CHAT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}: set MINI_CHAT_DATA")


@dataclass
class Source:
    path: str
    language: str = "auto"


def read(path: Path) -> tuple[list[PreferencePair], Tally]:
    tally = Tally()
    pairs = []
    for pair in read_preferences([Source(str(path))], tally):
        tally.check()
        pairs.append(pair)
    tally.check()
    assert tally.written == len(pairs)
    return pairs, tally


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


PLAIN = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
SYSTEM = {"role": "system", "content": "Be kind"}
LONG = [user("a"), assistant("b"), user("Hi")]


def read_one(tmp_path: Path, record: Any) -> PreferencePair | str:
    """The pair of a record, or the one reason for which it was set aside."""
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps(PLAIN) + "\n")
    pairs, tally = read(file)
    if len(pairs) == 2:
        return pairs[0]
    (reason,) = tally.dropped
    assert tally.examples[0].startswith(f"{file}:1: {reason}")
    return reason


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (PLAIN, [user("Hi")]),
        ({**PLAIN, "system": "Be kind"}, [SYSTEM, user("Hi")]),
        ({**PLAIN, "prompt": LONG}, LONG),
        ({"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("No")]}, [user("Hi")]),
        # TRL's implicit prompt, and UltraFeedback's prompt that the answers repeat
        ({"chosen": [*LONG, assistant("Hello")], "rejected": [*LONG, assistant("No")]}, LONG),
        ({"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("No")]},
         [user("Hi")]),
        ({"prompt": "Hi", "chosen": [SYSTEM, user("Hi"), assistant("Hello")],
          "rejected": [SYSTEM, user("Hi"), assistant("No")]}, [SYSTEM, user("Hi")]),
        # LLaMA-Factory, Alpaca, reward-model data
        ({"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
          "rejected": {"from": "gpt", "value": "No"}}, [user("Hi")]),
        ({"instruction": "Add", "input": "1", "chosen": "Hello", "rejected": "No"}, [user("Add\n1")]),
        ({"question": "Hi", "history": [["a", "b"]], "response_chosen": "Hello", "response_rejected": "No"}, LONG),
    ],
)  # fmt: skip
def test_form_is_brought_to_a_pair(tmp_path: Path, record: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    pair = read_one(tmp_path, record)
    assert isinstance(pair, PreferencePair), pair
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "Hello", "No")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**PLAIN, "rejected": "Hello"}, "chosen equals rejected"),
        ({**PLAIN, "rejected": " Hello\n"}, "chosen equals rejected"),
        ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("a")]}, "chosen equals rejected"),
        ({"prompt": "Hi", "chosen": "Hello"}, "field missing"),
        ({**PLAIN, "chosen": None}, "field missing"),
        ({"chosen": "Hello", "rejected": "No"}, "no prompt"),
        ({**PLAIN, "prompt": []}, "no prompt"),
        ({**PLAIN, "prompt": " "}, "empty content"),
        ({**PLAIN, "chosen": ""}, "empty content"),
        ({**PLAIN, "rejected": " "}, "empty content"),
        ({**PLAIN, "chosen": 7}, "messages are not a list of messages"),
        ({**PLAIN, "chosen": assistant(7)}, "content is not a string"),
        ({**PLAIN, "chosen": "a\x00"}, "NUL byte"),
        ({**PLAIN, "rejected": "\ud800"}, "lone surrogate"),
        ({**PLAIN, "prompt": [SYSTEM]}, "no user turn"),
        ({**PLAIN, "prompt": [user("Hi"), assistant("Hello")]}, "the prompt does not end with a user turn"),
        ({**PLAIN, "prompt": [assistant("Hello"), user("Hi")]}, "first turn is the assistant's"),
        ({**PLAIN, "prompt": [{"role": "wizard", "content": "Hi"}]}, "unknown role"),
        ({**PLAIN, "prompt": [{"role": "tool", "content": "Hi"}]}, "tool turn"),
        ({**PLAIN, "chosen": [user("Hi")]}, "an answer is not one assistant turn"),
        ({**PLAIN, "chosen": []}, "an answer is not one assistant turn"),
        ({**PLAIN, "chosen": [*LONG, assistant("a")], "rejected": [assistant("b")]},
         "an answer is not one assistant turn"),
        ("prose", "not a JSON object"),
    ],
)  # fmt: skip
def test_bad_record_is_set_aside_under_its_reason_and_place(tmp_path: Path, record: Any, reason: str) -> None:
    assert read_one(tmp_path, record) == reason


def test_language_and_kind_are_passed_on_or_guessed(tmp_path: Path) -> None:
    records = [
        PLAIN,
        {**PLAIN, "kind": "tone"},
        {**PLAIN, "skill": "greet", "language": "zh"},
        {**PLAIN, "prompt": "你好"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    pairs = read(tmp_path)[0]
    assert [(p.language, p.kind, p.number) for p in pairs] == [
        ("en", None, 1), ("en", "tone", 2), ("zh", "greet", 3), ("zh", None, 4),
    ]  # fmt: skip


def test_dialogues_in_place_of_pairs_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value) == (
        f"{file}: nothing usable in it (field missing: 1); for example {file}:1: field missing ('chosen'); "
        "mend it or leave it out"
    )


TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.sampled_from(["a", "b", ""])}
)
SIDE = st.none() | st.integers() | st.sampled_from(["a", "b", ""]) | TURN | st.lists(TURN, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "messages", "system", "history"]), SIDE))
def test_every_record_is_accounted_for_whatever_its_shape(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    result = read_one(tmp_path_factory.mktemp("any"), record)
    if isinstance(result, PreferencePair):
        assert result.prompt[-1]["role"] == "user"
        assert result.chosen and result.rejected and result.chosen != result.rejected


@needs_real_data
@pytest.mark.parametrize(
    ("name", "read_count", "dropped"),
    [("dpo_en_demo.json", 299, {"control character": 1}), ("dpo_zh_demo.json", 300, {})],
)
def test_real_pairs_are_read(name: str, read_count: int, dropped: dict[str, int]) -> None:
    pairs, tally = read(REAL_DATA / "llama-factory" / name)
    assert (tally.read, tally.dropped) == (read_count, dropped)
    assert {pair.prompt[-1]["role"] for pair in pairs} == {"user"}
