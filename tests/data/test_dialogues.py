"""What `read_dialogues` promises: the common forms brought to one, everything else set aside under its reason."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.dialogues import Dialogue, read_dialogues
from mini_chat.data.language import guess_language
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError

REAL_DATA = Path(os.environ.get("MINI_CHAT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}: set MINI_CHAT_DATA")

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@dataclass
class Source:
    path: str
    language: str = "auto"
    format: str = "auto"


def read(path: Path | str, max_line_bytes: int = 10_000_000, **about: str) -> tuple[list[Dialogue], Tally]:
    tally = Tally()
    dialogues = []
    for dialogue in read_dialogues([Source(str(path), **about)], tally, max_line_bytes):
        tally.check()
        dialogues.append(dialogue)
    tally.check()
    assert tally.written == len(dialogues)
    return dialogues, tally


def read_one(tmp_path: Path, record: Any) -> list[tuple[str, str]] | str:
    """The turns of a record, or the one reason for which it was set aside."""
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps({"messages": HI}) + "\n")
    dialogues, tally = read(file)
    if len(dialogues) == 2:
        return [(message["role"], message["content"]) for message in dialogues[0].messages]
    (reason,) = tally.dropped
    assert tally.examples[0].startswith(f"{file}:1: {reason}")
    return reason


def turns(*contents: str, system: str | None = None) -> list[tuple[str, str]]:
    start = [("system", system)] if system else []
    return start + [(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": HI}, turns("Hi", "Hello")),
        ({"messages": [{"role": "developer", "content": "Be brief"}, *HI]}, turns("Hi", "Hello", system="Be brief")),
        ({"messages": [{"role": "system", "content": " "}, *HI]}, turns("Hi", "Hello")),
        ({"messages": [{"role": "User ", "content": "\nHi "}, HI[1]]}, turns("Hi", "Hello")),
        ({"messages": [{"message": "Hi"}, {"message": "Hello", "attrs": []}]}, turns("Hi", "Hello")),
        ({"conversation": ["Hi", "Hello", "a", "b"]}, turns("Hi", "Hello", "a", "b")),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "Be"},
            turns("Hi", "Hello", system="Be"),
        ),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, turns("Add\n1 2", "3")),
        ({"instruction": "Add", "input": "", "output": "3"}, turns("Add", "3")),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "S"},
            turns("a", "b", "c", "d", system="S"),
        ),
        ({"instruction": "c", "output": "d", "history": [], "system": None}, turns("c", "d")),
        ({"question": "2+2?", "answer": "4"}, turns("2+2?", "4")),
        ({"prompt": [HI[0]], "completion": [HI[1]]}, turns("Hi", "Hello")),
        ({"query": "Hi", "response": "Hello"}, turns("Hi", "Hello")),
        ({"messages": [*HI, {"role": "user", "content": "?"}]}, turns("Hi", "Hello")),
        ({"messages": [HI[0], {"role": "user", "content": "you?"}, HI[1]]}, turns("Hi\nyou?", "Hello")),
    ],
)
def test_form_is_brought_to_messages(tmp_path: Path, record: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert read_one(tmp_path, record) == expected


def message(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [message("moderator", "x"), *HI]}, "unknown role"),
        ({"messages": [message(None, "x"), *HI]}, "unknown role"),
        ({"messages": [message(["user"], "x"), *HI]}, "unknown role"),
        ({"messages": [*HI, message("tool", "{}"), HI[1]]}, "tool turn"),
        ({"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool turn"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "tool turn"),
        ({"messages": [HI[0]]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [HI[1]]}, "first turn is the assistant's"),
        ({"messages": [message("system", "Be"), HI[1]]}, "first turn is the assistant's"),
        ({"messages": [*HI, HI[1]]}, "two assistant turns in a row"),
        ({"messages": [*HI, message("system", "Be"), *HI]}, "system message not first"),
        ({"messages": [HI[0], message("assistant", " \n")]}, "empty content"),
        ({"messages": [message("user", ""), HI[1]]}, "empty content"),
        ({"messages": [HI[0], message("assistant", 7)]}, "content is not a string"),
        ({"messages": [HI[0], message("assistant", [{"type": "text", "text": "a"}])]}, "content is not a string"),
        ({"messages": [HI[0], {"role": "assistant"}]}, "content missing"),
        ({"messages": [HI[0], message("assistant", "a\x00")]}, "NUL byte"),
        ({"messages": [HI[0], message("assistant", "a\x1b")]}, "control character"),
        ({"messages": [HI[0], message("assistant", "\ud83d")]}, "lone surrogate"),
        ({"messages": {"0": "Hi"}}, "unknown role"),
        ({"messages": 7}, "messages are not a list of messages"),
        ({"messages": [HI[0], 7]}, "messages are not a list of messages"),
        ({"instruction": "Add", "output": ""}, "empty content"),
        ({"instruction": "Add"}, "field missing"),
        ({"instruction": 7, "output": "a"}, "messages are not a list of messages"),
        ({"instruction": "a", "input": 7, "output": "a"}, "content is not a string"),
        ({"instruction": "a", "history": 7, "output": "a"}, "messages are not a list of messages"),
        ({"text": "prose"}, "no dialogue in a known form"),
        ({}, "no dialogue in a known form"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference pair, not a dialogue"),
        ({"messages": HI, "label": False}, "labelled undesirable"),
        ([HI], "not a JSON object"),
    ],
)
def test_bad_record_is_set_aside_under_its_reason_and_place(tmp_path: Path, record: Any, reason: str) -> None:
    assert read_one(tmp_path, record) == reason


def test_what_was_changed_is_counted_once_a_dialogue(tmp_path: Path) -> None:
    user = {"role": "user", "content": "and?"}
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [user, user, user, HI[1], user]}))
    assert read(tmp_path / "a.jsonl")[1].repaired == {
        "user turns in a row joined": 1,
        "trailing user turn taken off": 1,
    }


def test_bad_lines_are_set_aside_as_in_documents(tmp_path: Path) -> None:
    good = json.dumps({"messages": HI}).encode()
    bad = [b"\xff", b"a\x00", b"", b"{cut", b"[]", b'{"messages": "' + b"x" * 200 + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad]))
    dialogues, tally = read(tmp_path / "a.jsonl", max_line_bytes=150)
    assert len(dialogues) == 1
    assert tally.dropped == dict.fromkeys(
        ["invalid UTF-8", "NUL byte", "empty", "not valid JSON", "not a JSON object", "over max_line_bytes"], 1
    )


def test_language_and_skill_are_passed_on_or_guessed(tmp_path: Path) -> None:
    zh = [message("user", "用 pip install transformers 怎么安装？"), message("assistant", "直接运行就好")]
    records = [{"messages": HI, "language": "zh", "skill": "greet"}, {"messages": HI}, {"messages": zh}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert [(d.language, d.skill) for d in read(tmp_path)[0]] == [("zh", "greet"), ("en", None), ("zh", None)]
    assert [d.language for d in read(tmp_path, language="en")[0]] == ["zh", "en", "en"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello there", "en"),
        ("你好", "zh"),
        ("", "en"),
        ("Translate 你好 into English, please", "en"),
        ("𠮷野家 ok", "zh"),
    ],
)
def test_language_is_guessed_by_characters_against_words(text: str, language: str) -> None:
    assert guess_language(text) == language


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "b.json", "c.jsonl", "d.jsonl.gz", "e.ndjson", "f.yml", "g.json.gz"])
def test_file_kind_changes_nothing(tmp_path: Path, name: str) -> None:
    records = [{"messages": [message("user", f"第{i}问"), message("assistant", str(i))]} for i in range(3)]
    lines = "\n".join(map(json.dumps, records))
    content = {"a.json": json.dumps(records, indent=1), "g.json.gz": "\ufeff" + json.dumps(records)}.get(name, lines)
    if name == "f.yml":
        content = "conversations:\n" + "".join(f"- - 第{i}问\n  - {i}\n" for i in range(3))
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    dialogues, tally = read(tmp_path / name)
    assert [dialogue.messages for dialogue in dialogues] == [record["messages"] for record in records]
    assert [dialogue.number for dialogue in dialogues] == [1, 2, 3]
    assert tally.read == 3


def test_parquet_rows_are_records(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    bad = pa.array([b"x", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"messages": [HI, HI], "skill": bad}), tmp_path / "a.parquet")
    dialogues, tally = read(tmp_path / "a.parquet")
    assert [dialogue.messages for dialogue in dialogues] == [HI]
    assert tally.dropped == {"invalid UTF-8": 1}


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "a.json",
            b'[\n{"messages": []},\n{cut',
            ":3: not valid JSON (Expecting property name enclosed in double quotes)",
        ),
        ("a.json", b'["\xff"]', ": invalid UTF-8 at byte 2; convert the file to UTF-8"),
        ("a.json", b'{\n"data": []}', ": neither an array of objects nor one object a line; write it as .jsonl"),
        ("a.json", b"[" * 100_000, ": not valid JSON (RecursionError); write one object a line as .jsonl"),
        ("a.json", b"[]", ": nothing usable in it (); mend it or leave it out"),
        ("a.json", b"", ": the file is empty; fill it or take it out of the sources"),
        ("a.yml", b"a: [b\n", ":2: not valid YAML"),
        ("a.yml", b"a: b\n", ": no list of dialogues in it; write `conversations:` with one list of turns a dialogue"),
        ("a.yml", b"- \xff\n", ": not valid YAML (bad characters); mend it"),
        ("a.txt", b"Hi\n", ": its name tells no format; rename it to one of .jsonl, .ndjson, .json"),
        ("a.jsonl", b'{"text": "a"}\n', ": nothing usable in it (no dialogue in a known form: 1); for example"),
        ("a.json.gz", gzip.compress(b"[" + b"1," * 9999)[:-9], ": compressed stream damaged near byte"),
    ],
)
def test_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}{line}")
    assert "\n" not in str(caught.value)


def test_format_of_another_kind_of_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="records have no format 'lines'; state one of auto, jsonl, json"):
        read(tmp_path, format="lines")


def test_array_over_the_limit_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_chat.data.records.MAX_ARRAY_BYTES", 1000)
    (tmp_path / "a.json").write_text("[" + " " * 1000 + "]")
    with pytest.raises(UserError, match=r"too large to hold; write it as \.jsonl"):
        read(tmp_path / "a.json")


TURN_KEYS = ["messages", "conversations", "role", "from", "content", "value", "message", "tool_calls", "label"]
KEYS = [*TURN_KEYS, "instruction", "input", "output", "system", "history", "question", "answer"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "Hi"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON, max_size=4))
def test_every_record_is_accounted_for_whatever_its_shape(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any]
) -> None:
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in [{"messages": HI}, *records]))
    dialogues, tally = read(file)
    assert tally.read == 1 + len(records)
    for dialogue in dialogues:
        roles = [message["role"] for message in dialogue.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in dialogue.messages)


# --- real data --------------------------------------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    ("path", "read_count", "dropped"),
    [
        ("llama-factory/alpaca_en_demo.json", 999, {}),
        ("llama-factory/alpaca_zh_demo.json", 1000, {}),
        ("llama-factory/identity.json", 91, {}),
        ("llama-factory/glaive*", 600, {"tool turn": 312}),
        ("llama-factory/kto*", 300, {"labelled undesirable": 150}),
        ("medicalgpt", 1000, {"empty content": 1, "no assistant turn": 1}),
        ("kdconv", 600, {}),
        ("chatterbot-corpus/chinese", 467, {}),
        ("chatterbot-corpus/english", 2026, {"not a JSON object": 1}),
        ("gsm8k/test.jsonl", 1319, {}),
    ],
)
def test_real_dialogues_are_read(path: str, read_count: int, dropped: dict[str, int]) -> None:
    _, tally = read(REAL_DATA / path)
    assert (tally.read, tally.dropped) == (read_count, dropped)
