"""The search on disk finds what a plain loop finds, in any memory."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.cleaning.cleaner import EXACT_KEYS
from mini_chat.data.cleaning.duplicates import EXAMPLES, Columns, find, frequent, read_bits, tasks, write_columns
from mini_chat.data.cleaning.minhash import similarity
from mini_chat.data.cleaning.tokens import U64

BANDS = 2
BIG, TINY = 1 << 30, 128 * 3


def columns_of(rows: U64, cuts: list[int], folder: Path) -> list[Columns]:
    columns = []
    for number, part in enumerate(np.split(rows, sorted(cuts))):
        directory = folder / str(number)
        directory.mkdir(parents=True)
        columns.append(Columns(directory, write_columns(directory, iter([part]), rows.shape[1])))
    return columns


def found(columns: list[Columns], memory_bytes: int, scratch: Path, wanted: float = 0.6) -> list[list[bool]]:
    total = sum(column.documents for column in columns)
    return [
        np.unpackbits(find(task).bits)[:total].astype(bool).tolist()
        for task in tasks(columns, BANDS, wanted, memory_bytes, scratch)
    ]


def expected(rows: U64, wanted: float = 0.6) -> list[list[bool]]:
    """By a loop over all documents."""
    answers = []
    for key in (0, *range(EXACT_KEYS, rows.shape[1])):
        first: dict[int, int] = {}
        answer = []
        for number, row in enumerate(rows):
            earlier = first.setdefault(int(row[key]), number)
            if key == 0:
                same = rows[earlier][1] == row[1]
            else:
                pair = rows[[earlier]][:, EXACT_KEYS:], rows[[number]][:, EXACT_KEYS:]
                copy = rows[earlier][0] == row[0]
                same = not copy and similarity(*map(np.ascontiguousarray, pair))[0] >= wanted
            answer.append(bool(earlier != number and same))
        answers.append(answer)
    return answers


@st.composite
def keys(draw: st.DrawFn) -> U64:
    """Few values, so that many are the same, spread over the range, so that they fall into several buckets."""
    values = [value * 0x1F3D_5B79_1234_5677 % 2**64 for value in range(5)]
    row = st.tuples(*[st.sampled_from(values)] * (EXACT_KEYS + BANDS))
    return np.array(draw(st.lists(row, min_size=1, max_size=40)), np.uint64)


@given(keys(), st.lists(st.integers(0, 40), max_size=3), st.sampled_from([BIG, TINY, 128]))
@settings(max_examples=150, deadline=None)
def test_what_came_before_is_found_as_by_a_loop(rows: U64, cuts: list[int], memory_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cuts = [min(cut, len(rows)) for cut in cuts]
        columns = columns_of(rows, cuts, Path(folder))
        assert found(columns, memory_bytes, Path(folder) / "scratch") == expected(rows)
        assert not (Path(folder) / "scratch" / "exact").exists()


def test_many_documents_with_one_key_are_searched_in_portions(tmp_path: Path) -> None:
    rows = np.full((5_000, EXACT_KEYS + BANDS), 7, np.uint64)
    answers = found(columns_of(rows, [], tmp_path), 128 * 100, tmp_path / "scratch")
    assert answers[0] == [False] + [True] * 4_999
    rows[:, 0] = np.arange(5_000)
    columns = columns_of(rows, [], tmp_path / "near")
    assert found(columns, 128 * 100, tmp_path / "scratch")[1:] == [[False] + [True] * 4_999] * BANDS


def test_similarity_decides_where_a_band_agrees(tmp_path: Path) -> None:
    rows = np.array([[1, 1, 5, 0xFFFFFFFFFFFFFFFF], [2, 2, 5, 0]], np.uint64)
    columns = columns_of(rows, [], tmp_path)
    assert found(columns, BIG, tmp_path / "s", 0.4)[1] == [False, True]
    assert found(columns, BIG, tmp_path / "s", 0.6)[1] == [False, False]


@pytest.mark.parametrize("memory_bytes", [BIG, 128 * 1000])
def test_the_first_pairs_are_remembered_whatever_the_memory(tmp_path: Path, memory_bytes: int) -> None:
    generator = np.random.default_rng(3)
    rows = np.repeat(generator.integers(0, 2**63, (3_000, EXACT_KEYS + BANDS)).astype(np.uint64), 2, axis=0)
    task = tasks(columns_of(rows, [2_000], tmp_path), BANDS, 0.5, memory_bytes, tmp_path / "scratch")[0]
    pairs = find(task).pairs.tolist()
    assert pairs[:EXAMPLES] == [[2 * number + 1, 2 * number] for number in range(EXAMPLES)]
    assert pairs[EXAMPLES:] == [[2_001 + 2 * number, 2_000 + 2 * number] for number in range(EXAMPLES)]


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 5), st.sampled_from([BIG, TINY, 128]))
@settings(max_examples=60, deadline=None)
def test_frequent_keys_are_those_that_a_counter_counts(values: list[int], least: int, memory_bytes: int) -> None:
    spread = [value * 0x9E37_79B9_7F4A_7C15 % 2**64 for value in values]
    chunks = (np.array(spread[start : start + 7], np.uint64) for start in range(0, len(spread), 7))
    with tempfile.TemporaryDirectory() as folder:
        result = frequent(chunks, len(spread), least, memory_bytes, Path(folder) / "scratch").tolist()
    assert result == sorted(value for value, count in Counter(spread).items() if count >= least)


def test_bits_are_read_from_any_document_to_any_other(tmp_path: Path) -> None:
    bits = np.random.default_rng(1).random(77) < 0.5
    path = tmp_path / "some.bits"
    path.write_bytes(np.packbits(bits).tobytes())
    for start in range(0, 78, 3):
        for end in range(start, 78):
            assert read_bits(path, start, end).tolist() == bits[start:end].tolist()
