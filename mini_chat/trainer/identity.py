"""What a run's bits depend on, and what may differ when a checkpoint is gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_chat.console import say
from mini_chat.distributed import from_first, rank, summed
from mini_chat.errors import UserError

SPREAD = ("processes", "parallel")
"""How a run is spread over processes: it may change at every start. Which tokens make a batch stays; bits do not."""
WITH_SPREAD = ("threads",)
"""What may change together with it: each process takes its part of the cores."""
CAUSES = dict.fromkeys(("kernels", "compiled"), "it takes a C++ compiler")
"""Of what is found out, not set, where it comes from."""


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
    told = [
        f"{key} was {was}, now {now}{because(key)}" for key, (was, now) in differences.items() if key not in may_change
    ]
    if told:
        raise UserError(
            f"{path}: this checkpoint is of another run ({'; '.join(told)}); "
            f"set it back, or remove {path.parent.parent} to begin anew"
        )


def refuse_other_process(identity: dict[str, Any]) -> None:
    """Raise UserError in all processes where one is of another identity than the first; all call.

    The number of threads may differ: some machines have more cores than others.
    """
    differences = different(from_first(identity), identity)
    told = [
        f"{key} is {here}, there {there}{because(key)}"
        for key, (there, here) in differences.items()
        if key not in WITH_SPREAD
    ]
    if summed([float(bool(told))]) == [0.0]:
        return
    if told:
        raise UserError(
            f"this process would not train what process 0 trains ({'; '.join(told)}); start all with the same recipe "
            "and data, on machines alike"
        )
    raise UserError(f"process {rank()} stops: another process would not train the same, and says why")


def because(key: str) -> str:
    """Where a difference comes from that is not set in a recipe, in brackets, or ""."""
    return f" ({CAUSES[key]})" if key in CAUSES else ""


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
