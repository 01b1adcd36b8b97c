"""A corpus step that is killed goes on behind its last whole part, to the same bytes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import crash
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mini_chat.data.parts import Output, Parts, work_through
from mini_chat.data.tally import Tally

IDENTITY = {"settings": {"rule": 1}, "files": ["a"]}


def make_work() -> Callable[[int], Output]:
    def work(number: int) -> Output:
        tally = Tally(read=3)
        tally.drop("odd", f"item:{number}", count=1)
        tally.keep(10)
        tally.keep(10)
        line = json.dumps({"text": f"item {number} " + "x" * (number % 50)}).encode() + b"\n"
        return Output(2 * line, tally)

    return work


def run(directory: Path, items: int = 40, part_bytes: int = 700, processes: int = 1) -> Parts:
    parts = Parts(directory, IDENTITY, part_bytes)
    if parts.manifest is None:
        work_through(parts, range(items), make_work, processes)
        parts.close()
    return parts


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_bytes_are_the_same_on_one_process_and_on_two(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", processes=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(content(tmp_path / "one")) > 10


def test_a_part_ends_where_a_stretch_does_whatever_its_size(tmp_path: Path) -> None:
    stretches: list[list[int | None]] = [[*range(7), None], [7, 8, None], [None], [9, None]]
    together = Parts(tmp_path / "together", IDENTITY, 200)
    work_through(together, [item for items in stretches for item in items], make_work, 1)
    together.close()
    apart = []
    for number, items in enumerate(stretches):
        parts = Parts(tmp_path / str(number), IDENTITY, 200)
        work_through(parts, items, make_work, 2)
        parts.close()
        apart += [path.read_bytes() for path in sorted((tmp_path / str(number)).glob("part-*.zst"))]
    assert [path.read_bytes() for path in sorted((tmp_path / "together").glob("part-*.zst"))] == apart
    assert len(apart) > 3


def test_joined_stretches_are_the_parts_of_one_process_also_after_a_stop_on_the_way(tmp_path: Path) -> None:
    stretches: list[list[int | None]] = [[*range(7), None], [None], [7, 8, None], [9, None]]
    together = Parts(tmp_path / "together", IDENTITY, 200)
    work_through(together, [item for items in stretches for item in items], make_work, 1)
    together.close(Tally(read=0))
    joined = Parts(tmp_path / "joined", IDENTITY, 200)
    places = [tmp_path / "joined/stretches" / str(number) for number in range(len(stretches))]
    for place, items in zip(places, stretches, strict=True):
        parts = Parts(place, IDENTITY, 200)
        work_through(parts, items, make_work, 1)
        parts.leave(Tally(read=0))
    joined.join(places[:3])
    (tmp_path / "joined/part-00003.json").write_text("")  # as a machine that lost its power leaves it
    joined = Parts(tmp_path / "joined", IDENTITY, 200)
    assert len(joined.parts) == 3
    joined.close(joined.join(places))
    assert content(tmp_path / "joined") == content(tmp_path / "together"), "the stretches are gone, too"


def test_a_kill_before_any_file_operation_changes_nothing_in_the_end(tmp_path: Path) -> None:
    run(tmp_path / "undisturbed")
    expected, kills = content(tmp_path / "undisturbed"), 0
    for number in range(1, 200, 3):
        directory = tmp_path / f"killed-{number}"
        pid = os.fork()
        if not pid:
            crash.die_before_operation(number)
            run(directory)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        kills += killed
        run(directory)
        assert content(directory) == expected
        if not killed:
            break
    assert kills > 5


def test_parts_hold_every_line_and_the_account_balances(tmp_path: Path) -> None:
    manifest = run(tmp_path).manifest
    assert manifest is not None
    lines = b"".join(
        zstandard.ZstdDecompressor().decompress((tmp_path / part["name"]).read_bytes()) for part in manifest["parts"]
    ).splitlines()
    assert len(lines) == 80 == sum(part["documents"] for part in manifest["parts"])
    account = manifest["accounting"]
    assert (account["read"], account["written"], account["dropped"]) == (120, 80, {"odd": 40})
    assert len(account["examples"]) == 5


@pytest.mark.parametrize("harm", ["cut", "gone", "account"])
def test_a_damaged_part_is_made_again(harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    expected = content(tmp_path)
    victim = tmp_path / ("part-00002.json" if harm == "account" else "part-00002.jsonl.zst")
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3])
    run(tmp_path)
    assert content(tmp_path) == expected
    assert "made again" in capsys.readouterr().err


def test_another_input_is_named_and_everything_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    parts = Parts(tmp_path, {**IDENTITY, "files": ["a", "b"]}, 700)
    assert parts.manifest is None and parts.items == 0 and not list(tmp_path.glob("part-*"))
    assert "files changed since the last run; made again" in capsys.readouterr().err


tallies = st.builds(
    Tally,
    read=st.integers(0, 100),
    written=st.integers(-50, 100),
    bytes=st.integers(-50, 100),
    dropped=st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)).map(Counter),
    examples=st.lists(st.sampled_from(["f:1: a", "f:2: b (why)", "g:3: c"]), max_size=4),
)


@given(tallies)
def test_an_account_comes_back_from_json_as_it_was(tally: Tally) -> None:
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


@given(tallies, tallies, tallies)
def test_merging_accounts_does_not_depend_on_how_they_are_grouped(a: Tally, b: Tally, c: Tally) -> None:
    def merged(*tallies: Tally) -> Tally:
        total = Tally()
        for tally in tallies:
            total.merge(tally)
        return total

    assert merged(a, b, c) == merged(a, merged(b, c))
