"""Packing: every token is learnt from once, no document sees another, and the order is a function of the seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCAB_SIZE, tiny_model, write_split
from torch import Tensor

from mini_chat.data.packing import IGNORE, OPEN_ROWS, Batch, PackedDocuments, pack, row_order
from mini_chat.device import Device
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.attention import packed_attention
from mini_chat.trainer.loop import labelled, run_packed
from mini_chat.trainer.losses import token_nll

ROW = 16
PREFIX = VOCAB_SIZE - 3


def documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random documents of these lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB_SIZE - 4, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def model() -> SLMForCausalLM:
    return tiny_model()


@torch.no_grad()
def losses(model: SLMForCausalLM, batch: Batch, device: Device) -> dict[int, list[float]]:
    """Per document of the split, the loss of each of its labels in the order of the pieces."""
    with packed_attention(model, device):
        hidden_NH, labels_N = labelled(run_packed(model, batch).hidden_BLH, batch)
    nll = token_nll(hidden_NH, model.lm_head.weight, labels_N)
    found: dict[int, list[float]] = {}
    for piece, value in zip(batch.document_ids_BL.flatten()[batch.labelled_N].tolist(), nll.tolist(), strict=True):
        found.setdefault(batch.documents[piece], []).append(value)
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=9), st.data())
def test_changing_one_document_changes_no_other_documents_loss(
    model: SLMForCausalLM, device: Device, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: Any
) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    texts = documents(lengths)
    other = [*texts]
    other[changed] = documents([lengths[changed]], seed=1)[0]
    before, after = (
        losses(model, packed.rows(list(range(len(packed)))), device)
        for packed in (
            PackedDocuments(write_split(tmp_path_factory.mktemp("split"), t), ROW, seed=0, prefix=PREFIX)
            for t in (texts, other)
        )
    )
    assert before.keys() == after.keys() == set(range(len(lengths)))
    for document, values in before.items():
        if document != changed:
            assert values == pytest.approx(after[document], abs=1e-6)
    if texts[changed] != other[changed]:
        assert before[changed] != pytest.approx(after[changed], abs=1e-6)


def test_a_packed_document_has_the_loss_that_it_has_alone(
    model: SLMForCausalLM, device: Device, tmp_path: Path
) -> None:
    texts = documents([5, 9, 3, 12])
    packed = PackedDocuments(write_split(tmp_path / "all", texts), ROW, seed=0, prefix=PREFIX)
    together = losses(model, packed.rows(list(range(len(packed)))), device)
    for number, text in enumerate(texts):
        inputs = torch.tensor([[PREFIX, *text[:-1]]])
        with torch.no_grad():
            logits = model(inputs).logits[0]
        alone = torch.nn.functional.cross_entropy(logits, torch.tensor(text), reduction="none")
        assert together[number] == pytest.approx(alone.tolist(), abs=1e-4)


def labels_of(batch: Batch) -> list[int]:
    return batch.labels_BL[batch.labels_BL != IGNORE].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 20), st.booleans())
def test_every_token_is_learnt_from_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], row_tokens: int, with_prefix: bool
) -> None:
    texts = documents(lengths)
    split = write_split(tmp_path_factory.mktemp("split"), texts)
    packed = PackedDocuments(split, row_tokens, seed=3, prefix=PREFIX if with_prefix else None)
    seen = [token for place in range(len(packed)) for token in labels_of(packed.batch(place, 1))]
    # Without a prefix there is nothing before a document's first token to predict it from.
    wanted = [token for text in texts for token in (text if with_prefix else text[1:])]
    assert Counter(seen) == Counter(wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(8, 64))
def test_pieces_fill_rows_without_overlap_or_gap(lengths: list[int], row_tokens: int) -> None:
    packing = pack(np.array(lengths), row_tokens)
    pieces: dict[int, list[tuple[int, int]]] = {}
    for row in range(len(packing)):
        here = range(packing.row_start[row], packing.row_start[row + 1])
        assert 0 < sum(packing.length[piece] for piece in here) <= row_tokens
        for piece in here:
            start, length = int(packing.start[piece]), int(packing.length[piece])
            pieces.setdefault(int(packing.document[piece]), []).append((start, start + length))
    for document, length in enumerate(lengths):
        edges = sorted(pieces[document])
        assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])]
        assert edges[-1][1] == length
        assert len(edges) == -(-length // row_tokens), "a document is cut only where it does not fit a row"


def packed_one_by_one(lengths: list[int], row_tokens: int, open_rows: int) -> list[list[tuple[int, int, int]]]:
    """The rule in words: into the open row with the least room that is enough, the earlier one of two."""
    rows: list[list[tuple[int, int, int]]] = []
    room: dict[int, int] = {}
    for document, length in enumerate(lengths):
        start = 0
        while length - start > row_tokens or length - start == row_tokens:
            rows.append([(document, start, row_tokens)])
            start += row_tokens
        if not (rest := length - start):
            continue
        fitting = [row for row in room if room[row] >= rest]
        row = min(fitting, key=lambda row: (room[row], row)) if fitting else len(rows)
        if not fitting:
            rows.append([])
            room[row] = row_tokens
        rows[row].append((document, start, rest))
        room[row] -= rest
        if not room[row]:
            del room[row]
        elif len(room) > open_rows:
            del room[min(room, key=lambda row: (room[row], row))]
    return rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=300), st.integers(1, 64))
def test_packing_is_best_fit_among_the_open_rows(lengths: list[int], row_tokens: int) -> None:
    packing = pack(np.array(lengths, np.int64), row_tokens)
    wanted = packed_one_by_one(lengths, row_tokens, OPEN_ROWS)
    columns = (packing.document.tolist(), packing.start.tolist(), packing.length.tolist())
    pieces = list(zip(*columns, strict=True))
    assert [pieces[start:end] for start, end in pairwise(packing.row_start.tolist())] == wanted


def test_few_positions_are_wasted() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 4000)
    packing = pack(lengths, 256)
    assert lengths.sum() / (len(packing) * 256) > 0.96


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=40))
def test_a_pair_shares_a_row(pairs: list[tuple[int, int]]) -> None:
    packing = pack(np.array(pairs).flatten(), ROW, group=2)
    rows = np.repeat(np.arange(len(packing)), np.diff(packing.row_start))
    assert sorted(packing.document.tolist()) == list(range(2 * len(pairs)))
    assert packing.document[0::2].tolist() == (packing.document[1::2] - 1).tolist(), "chosen, then rejected"
    assert rows[0::2].tolist() == rows[1::2].tolist()


def test_row_order_is_a_permutation_drawn_from_seed_and_epoch_alone() -> None:
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        assert sorted(row_order(50, seed, epoch).tolist()) == list(range(50))
    assert row_order(50, 7, 2).tolist() == row_order(50, 7, 2).tolist()
    orders = {tuple(row_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def same(one: Batch, other: Batch) -> bool:
    tensors: list[tuple[Tensor, Tensor]] = [
        (one.input_ids_BL, other.input_ids_BL),
        (one.labels_BL, other.labels_BL),
        (one.position_ids_BL, other.position_ids_BL),
        (one.document_ids_BL, other.document_ids_BL),
    ]
    return all(torch.equal(*pair) for pair in tensors) and one.documents == other.documents


def test_a_batch_is_the_same_whatever_was_read_before(tmp_path: Path) -> None:
    split = write_split(tmp_path, documents(list(range(1, 30))))
    wanted = [PackedDocuments(split, ROW, 5, PREFIX).batch(first, 4) for first in range(0, 80, 4)]
    again = PackedDocuments(split, ROW, 5, PREFIX)
    for number in (13, 2, 19, 2, 0, 7):
        assert same(again.batch(number * 4, 4), wanted[number])
    halves = [again.batch(28, 2), again.batch(30, 2)]
    assert torch.equal(torch.cat([half.input_ids_BL for half in halves]), wanted[7].input_ids_BL)
    assert not same(PackedDocuments(split, ROW, 6, PREFIX).batch(0, 4), wanted[0])


def test_each_epoch_has_every_row_once_in_another_order(tmp_path: Path) -> None:
    packed = PackedDocuments(write_split(tmp_path, documents(list(range(1, 30)))), ROW, 5, PREFIX)
    size = len(packed)
    first, second = packed.row_numbers(0, size), packed.row_numbers(size, size)
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert packed.row_numbers(size - 2, 4) == first[-2:] + second[:2]


def test_positions_start_at_0_in_every_document_and_padding_has_no_loss(tmp_path: Path) -> None:
    packed = PackedDocuments(write_split(tmp_path, documents([4, 6, 3, 20])), ROW, 0, PREFIX)
    batch = packed.rows(list(range(len(packed))))
    for row in range(len(packed)):
        ids = batch.document_ids_BL[row].tolist()
        for place, number in enumerate(ids):
            begins = place == 0 or ids[place - 1] != number
            expected = 0 if begins or number < 0 else int(batch.position_ids_BL[row, place - 1]) + 1
            assert int(batch.position_ids_BL[row, place]) == expected
            assert (int(batch.labels_BL[row, place]) == IGNORE) == (number < 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.booleans(), st.booleans(), st.integers(0, 9))
def test_a_batch_is_its_pieces_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], with_prefix: bool, with_masks: bool, seed: int
) -> None:
    texts = documents(lengths, seed)
    masks = [[token % 2 for token in text] for text in texts] if with_masks and not with_prefix else None
    split = write_split(tmp_path_factory.mktemp("split"), texts, masks, shard_bytes=64)
    packed = PackedDocuments(split, ROW, seed, PREFIX if with_prefix else None)
    if not len(packed):
        return
    numbers = packed.row_numbers(seed, 5)
    batch = packed.rows(numbers)
    piece = 0
    for row, number in enumerate(numbers):
        inputs: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        ids: list[int] = []
        for at in range(packed.packing.row_start[number], packed.packing.row_start[number + 1]):
            document, start, length = (
                int(a[at]) for a in (packed.packing.document, packed.packing.start, packed.packing.length)
            )
            assert batch.documents[piece] == document
            tokens = ([PREFIX] if with_prefix else []) + texts[document]
            learnt = [1] * len(tokens) if masks is None else masks[document]
            inputs += tokens[start : start + length]
            after = slice(start + 1, start + length + 1)
            labels += [t if m else IGNORE for t, m in zip(tokens[after], learnt[after], strict=True)]
            positions += range(length)
            ids += [piece] * length
            piece += 1
        empty = ROW - len(inputs)
        assert batch.input_ids_BL[row].tolist() == inputs + [0] * empty
        assert batch.labels_BL[row].tolist() == labels + [IGNORE] * empty
        assert batch.position_ids_BL[row].tolist() == positions + [0] * empty
        assert batch.document_ids_BL[row].tolist() == ids + [-1] * empty
    assert piece == len(batch.documents)


def test_masked_tokens_have_no_loss(tmp_path: Path) -> None:
    texts, masks = documents([6, 5]), [[0, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0]]
    packed = PackedDocuments(write_split(tmp_path, texts, masks), ROW, 0)
    wanted = [t for text, mask in zip(texts, masks, strict=True) for t, m in zip(text[1:], mask[1:], strict=True) if m]
    assert labels_of(packed.rows([0])) == wanted


def test_micro_batches_are_the_batch_in_parts(tmp_path: Path) -> None:
    batch = PackedDocuments(write_split(tmp_path, documents([9, 14, 3, 20, 7])), ROW, 0, PREFIX).batch(0, 4)
    parts = batch.split(3)
    assert [len(part.input_ids_BL) for part in parts] == [3, 1]
    for name in ("input_ids_BL", "labels_BL", "position_ids_BL", "document_ids_BL"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(0, 1000))
def test_bounds_and_labelled_places_say_what_the_rows_say(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    split = write_split(tmp_path_factory.mktemp("bounds"), documents(lengths, seed))
    packed = PackedDocuments(split, ROW, seed, PREFIX)
    batch = packed.batch(0, 3)
    ids_T, bounds = batch.document_ids_BL.flatten(), batch.bounds_S.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(ids_T) and bounds == sorted(bounds)
    for start, end in pairwise(bounds):
        assert end - start <= ROW and len(ids_T[start:end].unique()) <= 1
    assert all(row in bounds for row in range(0, len(ids_T), ROW))
    assert torch.equal(batch.labels_BL.flatten()[batch.labelled_N], batch.labels_BL[batch.labels_BL != IGNORE])
    moved = batch.to(torch.device("meta"))
    assert moved.bounds_S.shape == batch.bounds_S.shape and moved.labelled_N.device.type == "meta"
