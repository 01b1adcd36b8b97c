"""What a run's bits depend on, and what may differ when a checkpoint is gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_chat.console import say
from mini_chat.errors import UserError

SPREAD = ("processes", "parallel")
"""How a run is spread over processes: it may change at every start. Which tokens make a batch stays; bits do not."""
WITH_SPREAD = ("threads",)
"""What may change together with it: each process takes its part of the cores."""


def refuse_other_run(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Say what may have changed; raise UserError, naming each difference, where a checkpoint is of another run."""
    differences = different(saved, current)
    if SPREAD[0] in differences:
        was, now = differences[SPREAD[0]]
        say(
            f"{path}: written by {was or 1} processes, going on with {now or 1}: the tokens of each batch stay, "
            "rounding does not"
        )
    spread = differences.keys() & {*SPREAD}
    may_change = {*SPREAD, *WITH_SPREAD} if spread else set()
    told = [f"{key} was {was}, now {now}" for key, (was, now) in differences.items() if key not in may_change]
    if told:
        raise UserError(
            f"{path}: this checkpoint is of another run ({'; '.join(told)}); "
            f"set it back, or remove {path.parent.parent} to begin anew"
        )


def same_run(saved: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether two identities are of one run, however it was spread over processes."""
    differences = different(saved, current).keys()
    return not differences or (bool(differences & {*SPREAD}) and differences <= {*SPREAD, *WITH_SPREAD})


def different(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, under dotted keys: (then, now), None where there is none."""
    before, now = flat(saved), flat(current)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
