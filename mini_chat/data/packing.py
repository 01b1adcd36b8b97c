"""Packing and order: which tokens make batch n is a function of (seed, shards, n) and of nothing else.

Documents are packed whole into rows of a fixed length; a document longer than a row is cut into pieces. The packing
depends on the documents' lengths alone, the order of the rows on (seed, epoch), so any process can compute any batch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mini_chat.data.token_shards import TokenDocuments

IGNORE = -100  # label of a position that has no loss, as in torch's cross-entropy
OPEN_ROWS = 64  # rows that are filled at the same time; more waste less and cost more
ROW_BITS = 40  # of a row's number, beside its room in one integer
ROW_MASK = (1 << ROW_BITS) - 1
BOUNDS_STEP = 256  # bounds are filled up to a power of two times this, so that there are few sizes of them


@dataclass
class Packing:
    """Pieces of documents in rows: row r holds the pieces row_start[r] : row_start[r + 1].

    A piece is `length` positions of document `document`, from position `start`; all int64 arrays.
    """

    row_start: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.row_start) - 1


def pack(positions: np.ndarray, row_tokens: int, group: int = 1) -> Packing:
    """Pack documents of so many `positions` (int64 (documents,)) into rows, in order, best fit among open rows.

    With `group` = 2 documents 2i and 2i+1 (a preference pair) always share a row, and must fit it together.
    A row is closed when it is full, or when it is the fullest of OPEN_ROWS and nothing fits: waste is a few per cent.
    Which row a document comes to does not matter, since the rows are shuffled.
    """
    sizes = positions.reshape(-1, group).sum(axis=1).tolist()
    assert group == 1 or not sizes or max(sizes) <= row_tokens, "a pair that does not fit is set aside before packing"
    # The row of each piece, and the piece; C integers, of which ten million are not a gigabyte.
    row_of, unit_of, start_of, length_of = (array("q") for _ in range(4))
    # Open rows in the order of their room, then of their number: room << ROW_BITS | row. Best fit is one bisection.
    open_rows: list[int] = []
    rows = 0
    for unit, size in enumerate(sizes):
        start = 0
        while size > row_tokens:
            row_of.append(rows)
            unit_of.append(unit)
            start_of.append(start)
            length_of.append(row_tokens)
            rows, start, size = rows + 1, start + row_tokens, size - row_tokens
        if not size:
            continue
        slot = bisect_left(open_rows, size << ROW_BITS)
        if slot < len(open_rows):
            packed = open_rows.pop(slot)
            row, room = packed & ROW_MASK, (packed >> ROW_BITS) - size
        else:
            row, room = rows, row_tokens - size
            rows += 1
        if room:
            insort(open_rows, room << ROW_BITS | row)
            if len(open_rows) > OPEN_ROWS:
                open_rows.pop(0)
        row_of.append(row)
        unit_of.append(unit)
        start_of.append(start)
        length_of.append(size)
    pieces_of_row = np.array(row_of, np.int64)
    order = np.argsort(pieces_of_row, kind="stable")
    row_start = np.searchsorted(pieces_of_row[order], np.arange(rows + 1))
    columns = (np.array(column, np.int64)[order] for column in (unit_of, start_of, length_of))
    return _of_members(Packing(row_start, *columns), positions, group)


def _of_members(packing: Packing, positions: np.ndarray, group: int) -> Packing:
    """Pieces of groups → pieces of their documents, those without positions left out."""
    if group == 1:
        return packing
    document = (packing.document[:, None] * group + np.arange(group)).flatten()
    length = positions[document].astype(np.int64)
    kept = length > 0
    pieces_before = np.concatenate([[0], np.cumsum(kept)])
    return Packing(
        pieces_before[packing.row_start * group], document[kept], np.zeros(int(kept.sum()), np.int64), length[kept]
    )


def row_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in an epoch: a permutation drawn from (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch, 0x0BDE8]).permutation(rows)


@dataclass
class Batch:
    """Rows of packed documents. B rows, L positions.

    input_ids_BL, labels_BL (IGNORE where no loss), position_ids_BL (from 0 in each document): int64.
    document_ids_BL: int64, counts the pieces of the batch from 0 through all its rows; -1 is padding.
    documents: of each piece, the number of its document in the split.
    """

    documents: list[int]
    input_ids_BL: Tensor
    labels_BL: Tensor
    position_ids_BL: Tensor
    document_ids_BL: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device.

        What has to be looked up in it is looked up before: on a GPU every look-up would wait for all that is under way.
        """
        if device.type == "cpu":
            return self
        tensors = [*self._tensors(), self.labelled_N, self.bounds_S]
        if device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        *rows, labelled_N, bounds_S = (tensor.to(device, non_blocking=True) for tensor in tensors)
        moved = Batch(self.documents, *rows)
        moved.labelled_N, moved.bounds_S = labelled_N, bounds_S
        return moved

    @cached_property
    def labelled_N(self) -> Tensor:
        """int64 (N,): where the labels are, all rows one after the other."""
        return (self.labels_BL.flatten() != IGNORE).nonzero().squeeze(1)

    @cached_property
    def bounds_S(self) -> Tensor:
        """int32: where each piece begins, all rows one after the other, and the end; padding is a piece of its own.

        Filled up with the end to one of a few sizes, as if empty pieces followed.
        """
        ids_T = self.document_ids_BL.flatten()
        begins_T = torch.ones_like(ids_T, dtype=torch.bool)
        begins_T[1:] = ids_T[1:] != ids_T[:-1]
        begins_T[:: self.document_ids_BL.shape[1]] = True
        starts = begins_T.nonzero().squeeze(1)
        size = BOUNDS_STEP
        while size < len(starts) + 1:
            size *= 2
        bounds_S = torch.full((size,), len(ids_T), dtype=torch.int32)
        bounds_S[: len(starts)] = starts
        return bounds_S

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of at most so many rows; document_ids stay those of the whole batch."""
        parts = zip(*(tensor.split(rows) for tensor in self._tensors()), strict=True)
        return [Batch(self.documents, *part) for part in parts]

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.input_ids_BL, self.labels_BL, self.position_ids_BL, self.document_ids_BL

    def attention_mask(self) -> Tensor:
        """bool (B, 1, L, L): causal, and within one document only; padding sees itself, so no row is empty."""
        same_BLL = self.document_ids_BL[:, :, None] == self.document_ids_BL[:, None, :]
        return same_BLL.tril_()[:, None]


class PackedDocuments:
    """A split as rows of `row_tokens` positions, in an order that is a function of the seed.

    Args:
        prefix: a token put before every document (the end-of-document token in pretraining, so that a document's
            first token is predicted too), or None.
        group: 2 for preference pairs, see `pack`.
    """

    def __init__(
        self, documents: TokenDocuments, row_tokens: int, seed: int, prefix: int | None = None, group: int = 1
    ) -> None:
        self.documents, self.row_tokens, self.seed, self.prefix = documents, row_tokens, seed, prefix
        # n stored tokens make n-1 pairs of input and label, and one more with the prefix.
        positions = np.maximum(documents.lengths() - (prefix is None), 0)
        self.packing = pack(positions, row_tokens, group)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._range = np.zeros(0, np.int64)  # 0, 1, …, as many as a batch has positions: made once
        self._views = [np.asarray(tokens).data for tokens in documents.tokens]

    def __len__(self) -> int:
        return len(self.packing)

    def row_numbers(self, first: int, count: int) -> list[int]:
        """Rows number first … first + count - 1 of the endless sequence of epochs."""
        numbers: list[int] = []
        while len(numbers) < count:
            epoch, at = divmod(first + len(numbers), len(self))
            if self._order[0] != epoch:
                self._order = (epoch, row_order(len(self), self.seed, epoch))
            numbers += self._order[1][at : at + count - len(numbers)].tolist()
        return numbers

    def batch(self, first: int, count: int) -> Batch:
        """The batch of `count` rows from place `first` of the endless sequence."""
        return self.rows(self.row_numbers(first, count))

    def rows(self, numbers: list[int]) -> Batch:
        """The given rows as a batch, on the CPU."""
        packing, shape = self.packing, (len(numbers), self.row_tokens)
        first, last = packing.row_start[numbers], packing.row_start[np.add(numbers, 1)]
        counts = last - first
        pieces = np.repeat(last - np.cumsum(counts), counts) + np.arange(counts.sum())
        documents, starts, sizes = packing.document[pieces], packing.start[pieces], packing.length[pieces]
        filled = np.diff(np.cumsum(sizes)[np.cumsum(counts) - 1], prepend=0)
        padding = self.row_tokens - filled
        # Where each piece stands in the batch, all rows one after the other.
        at = np.cumsum(sizes) - sizes + np.repeat(np.cumsum(padding) - padding, counts)
        labels, first_inputs = self._labels(documents, starts, sizes, at, shape)
        # Within a piece, what is to be predicted at one position is what is seen at the next.
        inputs = np.empty_like(labels)
        inputs[1:] = labels[:-1]
        inputs[at] = first_inputs
        labels = self._masked(labels, documents, starts, sizes, at)
        to_next = np.diff(at, append=inputs.size)
        ids = np.repeat(np.arange(len(at)), to_next)
        positions = np.repeat(at, to_next)
        if len(self._range) != inputs.size:
            self._range = np.arange(inputs.size)
        np.subtract(self._range, positions, out=positions)
        ends = np.arange(1, len(numbers) + 1) * self.row_tokens
        empty = np.repeat(ends - np.cumsum(padding), padding) + np.arange(padding.sum())
        tables = inputs, labels, positions, ids
        for table, value in zip(tables, (0, IGNORE, 0, -1), strict=True):
            table[empty] = value
        return Batch(documents.tolist(), *(torch.from_numpy(table.reshape(shape)) for table in tables))

    def _labels(
        self, documents: np.ndarray, starts: np.ndarray, sizes: np.ndarray, at: np.ndarray, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is predicted in each piece, int64 (B * L,), at its place in the batch; and what each begins with."""
        files, begin = self.documents.places(documents)
        begin = begin + starts + (self.prefix is None)
        places = zip(files.tolist(), begin.tolist(), (begin + sizes).tolist(), at.tolist(), sizes.tolist(), strict=True)
        labels = np.zeros(shape[0] * shape[1], self.documents.dtype)
        # Views and not arrays: a fifth of the time for pieces of a few hundred tokens.
        views, target = self._views, labels.data
        for file, here, end, to, size in places:
            target[to : to + size] = views[file][here:end]
        first_inputs = np.full(len(at), self.prefix or 0, np.int64)
        # What comes before a piece in its document; before the whole of it comes the prefix.
        for piece in np.flatnonzero(starts + (self.prefix is None)).tolist():
            first_inputs[piece] = views[files[piece]][begin[piece] - 1]
        return labels.astype(np.int64), first_inputs

    def _masked(
        self, labels: np.ndarray, documents: np.ndarray, starts: np.ndarray, sizes: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        """The labels, IGNORE where the documents' masks say so."""
        if not self.documents.masks:
            return labels
        assert self.prefix is None
        learnt = np.zeros(len(labels), np.uint8)
        files, begin = self.documents.places(documents)
        begin = begin + starts + 1
        for file, here, to, size in zip(files.tolist(), begin.tolist(), at.tolist(), sizes.tolist(), strict=True):
            learnt[to : to + size] = self.documents.masks[file][here : here + size]
        return np.where(learnt, labels, IGNORE)
