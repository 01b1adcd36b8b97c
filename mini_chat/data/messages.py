"""Messages: the forms in which dialogues and prompts come, brought to one: `[{"role": …, "content": …}, …]`.

| form | example |
|---|---|
| role and content | `{"role": "user", "content": "Hi"}` |
| ShareGPT | `{"from": "human", "value": "Hi"}` |
| KdConv: no roles, user first | `{"message": "Hi"}` |
| strings, user first | `["Hi", "Hello!"]` |
| Alpaca and the like | `{"instruction": …, "input": …, "system": …, "history": [[question, answer], …]}` |

White space around a content is taken off: it carries no meaning, and a model would learn it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mini_chat.data.language import guess_language
from mini_chat.data.records import Record, check_text
from mini_chat.data.tally import FIELD_MISSING, SetAside

Message = dict[str, str]

UNKNOWN_FORM = "no dialogue in a known form"
UNKNOWN_ROLE = "unknown role"
TOOL_TURN = "tool turn"
NOT_A_LIST = "messages are not a list of messages"
CONTENT_MISSING = "content missing"
CONTENT_NOT_STRING = "content is not a string"
CONTENT_EMPTY = "empty content"
SYSTEM_NOT_FIRST = "system message not first"
ASSISTANT_FIRST = "first turn is the assistant's"
ASSISTANT_TWICE = "two assistant turns in a row"
NO_USER_TURN = "no user turn"
USER_TURNS_JOINED = "user turns in a row joined"

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
TOOL_ROLES = {"tool", "tool_call", "tool_response", "function", "function_call", "function_response", "observation"}

TURNS_KEYS = ("messages", "conversations", "conversation")
PROMPT_KEYS = ("instruction", "prompt", "question", "query")


def as_turns(value: Any, role: str = "user") -> list[Message]:
    """Messages from a string (spoken by `role`), one message, a list of messages, or a list of strings (user first).

    Raises:
        SetAside: it is none of these, a role is unknown or a tool's, a content is no string.
    """
    if isinstance(value, str):
        return [_message(role, value)]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise SetAside(NOT_A_LIST, f"it is a {type(value).__name__}")
    return [_turn(item, ("user", "assistant")[index % 2]) for index, item in enumerate(items)]


def _turn(item: Any, role_by_position: str) -> Message:
    if isinstance(item, str):
        return _message(role_by_position, item)
    if not isinstance(item, dict):
        raise SetAside(NOT_A_LIST, f"a message is a {type(item).__name__}")
    said_role = item.get("role", item.get("from"))
    if said_role is None and "message" in item:
        said_role = role_by_position
    role = ROLES.get(said_role.strip().lower()) if isinstance(said_role, str) else None
    if role is None:
        is_tool = isinstance(said_role, str) and said_role.strip().lower() in TOOL_ROLES
        raise SetAside(TOOL_TURN if is_tool else UNKNOWN_ROLE, ascii(said_role)[:40])
    if item.get("tool_calls") or item.get("function_call"):
        raise SetAside(TOOL_TURN, "tool_calls")
    for key in ("content", "value", "message"):
        if key in item:
            return _message(role, item[key])
    raise SetAside(CONTENT_MISSING, f"keys {', '.join(list(item)[:5])}"[:80])


def _message(role: str, content: Any) -> Message:
    if not isinstance(content, str):
        raise SetAside(CONTENT_NOT_STRING, f"{role}: {type(content).__name__}")
    return {"role": role, "content": content.strip()}


def opening(record: dict[str, Any]) -> list[Message]:
    """What a record says before its answer: system, history, then its turns or its instruction.

    Raises:
        SetAside: it says nothing in a known form.
    """
    turns: list[Message] = []
    if (system := record.get("system")) not in (None, ""):
        turns += as_turns(system, "system")
    history = record.get("history") or []
    if not isinstance(history, list):
        raise SetAside(NOT_A_LIST, f"history is a {type(history).__name__}")
    for item in history:
        turns += as_turns(item)
    for key in TURNS_KEYS:
        if record.get(key) is not None:
            return turns + as_turns(record[key])
    for key in PROMPT_KEYS:
        if record.get(key) is not None:
            asked = as_turns(record[key])
            extra = record.get("input")
            if len(asked) == 1 and extra not in (None, ""):
                asked = [_message("user", f"{asked[0]['content']}\n{_message('user', extra)['content']}")]
            return turns + asked
    return turns


def no_form(record: dict[str, Any], wanted: str) -> SetAside:
    """The reason for a record that holds nothing we can name, with the keys that it has."""
    return SetAside(UNKNOWN_FORM, f"{wanted} not among {', '.join(list(record)[:8]) or 'none'}"[:120])


def tidy(messages: list[Message], repaired: Counter[str]) -> list[Message]:
    """Messages in the order that the chat template knows: perhaps a system message, then user and assistant in turn.

    An empty system message is taken as none. User turns in a row are joined by a line end (a person who presses
    Enter twice; nothing is learnt from a user's turn), which `repaired` counts once a dialogue. Assistant turns in a
    row are not joined: the model would learn an answer that nobody gave.

    Raises:
        SetAside: an empty content, a system message later on, no user turn, the assistant speaking first or twice.
    """
    if messages and messages[0]["role"] == "system" and not messages[0]["content"]:
        messages = messages[1:]
    tidied: list[Message] = []
    joined = False
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        check_text(content)
        if not content:
            raise SetAside(CONTENT_EMPTY, f"turn {index + 1}, {role}")
        before = tidied[-1]["role"] if tidied else None
        if role == "system" and before is not None:
            raise SetAside(SYSTEM_NOT_FIRST, f"turn {index + 1}")
        if role == "assistant" and before != "user":
            raise SetAside(ASSISTANT_TWICE if before == "assistant" else ASSISTANT_FIRST, f"turn {index + 1}")
        if role == "user" and before == "user":
            tidied[-1] = {"role": "user", "content": f"{tidied[-1]['content']}\n{content}"}
            joined = True
        else:
            tidied.append(message)
    if not any(message["role"] == "user" for message in tidied):
        raise SetAside(NO_USER_TURN)
    repaired[USER_TURNS_JOINED] += joined
    return tidied


def answer_turns(record: dict[str, Any], key: str) -> list[Message]:
    """The assistant's turns under `key`.

    Raises:
        SetAside: there are none.
    """
    if record.get(key) is None:
        raise SetAside(FIELD_MISSING, f"'{key}'")
    return as_turns(record[key], "assistant")


def language_of(record: Record, texts: list[str]) -> str:
    """The language that the record states, else its source's, else the one guessed from `texts`."""
    for stated in (record.value.get("language"), record.value.get("lang"), getattr(record.source, "language", None)):
        if isinstance(stated, str) and stated not in ("", "auto"):
            return stated
    return guess_language("\n".join(texts))


def label(record: Record, *keys: str) -> str | None:
    """The first string among the record's `keys`."""
    return next((record.value[key] for key in keys if isinstance(record.value.get(key), str)), None)


def size_bytes(texts: list[str]) -> int:
    """UTF-8 bytes of `texts` together."""
    return sum(len(text.encode()) for text in texts)
