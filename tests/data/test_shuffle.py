"""The shuffle: it loses nothing, its order is that of the keys whatever the memory, and chance could have made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data import shuffle
from mini_chat.data.keys import copy_keys, document_keys, stream, times_seen
from mini_chat.data.shuffle import INFO, Documents, RunWriter, merged, shuffled
from mini_chat.errors import UserError

KEYS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63, 2**64 - 1])
DOCUMENTS = st.lists(st.tuples(KEYS, st.binary(max_size=30)), max_size=60)


def documents(pairs: list[tuple[int, bytes]]) -> Documents:
    infos = np.zeros(len(pairs), INFO)
    infos["size"] = [len(payload) for _, payload in pairs]
    return Documents(np.array([key for key, _ in pairs], np.uint64), infos, b"".join(payload for _, payload in pairs))


def pairs_of(pieces: list[Documents]) -> list[tuple[int, bytes]]:
    found = []
    for keys, infos, payload in pieces:
        ends = np.cumsum(infos["size"]).tolist()
        for key, start, end in zip(keys.tolist(), [0, *ends], ends, strict=False):
            found.append((key, bytes(payload[start:end])))
    return found


@settings(max_examples=80, deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4), st.sampled_from([1, 300, 2000, 1 << 20]), st.integers(0, 50))
def test_runs_are_merged_in_the_order_of_the_keys_whatever_the_memory(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[tuple[int, bytes]]], memory: int, skip: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for number, pairs in enumerate(runs):
        writer = RunWriter(1 << 20)
        writer.add(documents(pairs[: len(pairs) // 2]))
        writer.add(documents(pairs[len(pairs) // 2 :]))
        paths.append(folder / f"{number}.run")
        writer.write(paths[-1])
    wanted = sorted((pair for pairs in runs for pair in pairs), key=lambda pair: pair[0])  # stable, as the merge is
    assert pairs_of(list(merged(paths, memory))) == wanted
    assert pairs_of(list(merged(paths, memory, skip))) == wanted[skip:]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=80), st.integers(0, 9), st.sampled_from([400, 5000, 1 << 20]))
def test_the_shuffle_is_a_permutation_and_the_memory_has_no_part_in_it(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], seed: int, memory: int
) -> None:
    folder = tmp_path_factory.mktemp("shuffle")
    out = list(shuffled(payloads, folder, memory, seed))
    assert sorted(out) == sorted(payloads)
    assert out == list(shuffled(payloads, folder, 1 << 24, seed))
    assert not list(folder.iterdir()), "no run is left behind"


def test_memory_bounds_what_is_held_at_a_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pairs = [(int(draw.integers(2**63)), bytes(int(size))) for size in draw.integers(1, 2000, 3000)]
    pairs += [(7, bytes(50_000))]  # a document over the limit comes alone
    writer = RunWriter(1 << 30)
    writer.add(documents(pairs))
    writer.write(tmp_path / "a.run")
    sizes = [(len(piece.keys), len(piece.payload)) for piece in merged([tmp_path / "a.run"], 20_000)]
    assert sum(count for count, _ in sizes) == len(pairs)
    assert all(size <= 20_000 or count == 1 for count, size in sizes)
    assert max(size for _, size in sizes) == 50_000


def test_a_run_cut_short_is_one_line(tmp_path: Path) -> None:
    writer = RunWriter(1 << 20)
    writer.add(documents([(5, b"abc"), (6, b"d")]))
    path = tmp_path / "a.run"
    writer.write(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.run: damaged; remove .* and run again$"):
        list(merged([path], 1 << 20))


def test_the_order_is_the_one_it_always_was() -> None:
    """Keys are in the shards of everyone who made any: another order is another data set."""
    places = np.full(3, stream(1, 2, 3), np.uint64)
    keys = document_keys(places, np.arange(3, dtype=np.uint64))
    assert keys.tolist() == [
        4832099176865914612,
        11046872035627194509,
        144657880700408135,
    ]
    assert copy_keys(keys, 0).tolist() == keys.tolist()
    assert not set(copy_keys(keys, 1).tolist()) & set(keys.tolist())


FILES, IN_FILE = 4, 5_000
TOTAL = FILES * IN_FILE


@pytest.fixture(scope="module", params=[1, 2, 3])
def order(request: pytest.FixtureRequest) -> np.ndarray:
    """Where the documents of four files come from, in the order of their keys: a permutation of 0 … TOTAL - 1."""
    places = np.repeat(np.array([stream(request.param, 0, file) for file in range(FILES)], np.uint64), IN_FILE)
    numbers = np.tile(np.arange(1, IN_FILE + 1, dtype=np.uint64), FILES)
    return np.argsort(document_keys(places, numbers), kind="stable")


# Each statistic below exceeds its bound by chance once in a thousand permutations.


def test_where_a_document_goes_does_not_depend_on_where_it_was(order: np.ndarray) -> None:
    correlation = np.corrcoef(order, np.arange(TOTAL))[0, 1]
    assert abs(correlation) < 3.29 / np.sqrt(TOTAL)
    table = np.histogram2d(order, np.arange(TOTAL), bins=10)[0]
    expected = TOTAL / 100
    assert ((table - expected) ** 2 / expected).sum() < 124.8, "chi-square with 81 degrees of freedom"


def test_neighbours_come_from_anywhere(order: np.ndarray) -> None:
    distance = np.sort(np.abs(np.diff(order))) / TOTAL
    # Of two independent places in 0 … 1, the distance is at most x with probability 1 - (1 - x)^2: Kolmogorov-Smirnov.
    expected = 1 - (1 - distance) ** 2
    found = np.arange(1, TOTAL) / (TOTAL - 1)
    assert np.abs(found - expected).max() < 1.95 / np.sqrt(TOTAL)
    file = order // IN_FILE
    pairs = np.bincount(file[:-1] * FILES + file[1:], minlength=FILES**2)
    expected_pairs = (TOTAL - 1) / FILES**2
    assert ((pairs - expected_pairs) ** 2 / expected_pairs).sum() < 37.7, "chi-square with 15 degrees of freedom"
    serial = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(serial) < 3.29 / np.sqrt(TOTAL)


@pytest.mark.parametrize("epochs", [0.0, 0.3, 1.0, 2.75])
def test_a_fraction_of_an_epoch_is_a_fraction_of_the_documents_wherever_they_are(epochs: float) -> None:
    keys = document_keys(np.full(TOTAL, stream(5, 0, 0), np.uint64), np.arange(TOTAL, dtype=np.uint64))
    times = times_seen(keys, epochs, 99)
    assert set(times.tolist()) <= {int(epochs), int(epochs) + 1}
    assert times.mean() == pytest.approx(epochs, abs=0.015)
    drawn = times > int(epochs)
    if drawn.any():
        assert abs(np.corrcoef(drawn, keys.astype(np.float64))[0, 1]) < 0.03, (
            "what is drawn lies everywhere in the order"
        )


def test_a_piece_of_the_merge_is_bounded_in_documents_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "COPY_DOCUMENTS", 10)
    writer = RunWriter(1 << 20)
    writer.add(documents([(number, b"") for number in range(95)]))
    writer.write(tmp_path / "a.run")
    assert [len(piece.keys) for piece in merged([tmp_path / "a.run"], 1 << 20)] == [10] * 9 + [5]
