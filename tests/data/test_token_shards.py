"""Shards: what is written is what is read, the shuffle loses nothing, and damage is told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.token_shards import (
    MANIFEST,
    ShardWriter,
    TokenDocuments,
    read_manifest,
    write_manifest,
)
from mini_chat.errors import UserError

TOKEN = st.integers(0, 65_535)
DOCUMENT = st.lists(TOKEN, max_size=20)
MASKED = st.lists(st.tuples(TOKEN, st.booleans()), max_size=20)


def write(directory: Path, documents: list[list[int]], shard_bytes: int = 40) -> TokenDocuments:
    writer = ShardWriter(directory, "train", shard_bytes)
    for document in documents:
        writer.add(np.array(document, np.uint16))
    write_manifest(directory, {"train": writer.close()}, tokenizer="t")
    return TokenDocuments(directory, "train", verify=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENT, max_size=12), st.integers(2, 80))
def test_documents_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_bytes: int
) -> None:
    split = write(tmp_path_factory.mktemp("shards"), documents, shard_bytes)
    assert [split.document(number).tolist() for number in range(len(split))] == documents
    assert split.lengths().tolist() == [len(document) for document in documents]
    assert split.manifest["splits"]["train"]["tokens"] == sum(map(len, documents))
    for file in split.files:
        assert 2 * file["tokens"] <= max(shard_bytes, 2 * max(map(len, documents))), "no shard is larger than asked"


@settings(max_examples=30, deadline=None)
@given(st.lists(MASKED, max_size=10))
def test_masks_come_back_with_their_documents(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[tuple[int, bool]]]
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(directory, "train", 30, with_mask=True)
    for document in documents:
        writer.add(np.array([t for t, _ in document], np.uint16), np.array([m for _, m in document], np.uint8))
    entry = writer.close()
    write_manifest(directory, {"train": entry}, tokenizer="t")
    split = TokenDocuments(directory, "train")
    assert entry["trained_tokens"] == sum(m for document in documents for _, m in document)
    for number, document in enumerate(documents):
        mask = split.mask(number)
        assert mask is not None and mask.tolist() == [m for _, m in document]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write(tmp_path, [[1, 2, 3], [4, 5], list(range(100))])
    return tmp_path


def message(directory: Path, verify: bool = False, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        TokenDocuments(directory, split, verify)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", [".ds", ".ds.index"])
def test_a_shard_cut_short_is_named_with_both_sizes(shards: Path, kind: str) -> None:
    path = shards / f"train-00000{kind}"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size - 1)
    assert message(shards) == f"{path}: {size - 1} bytes, not the {size} of the manifest; run `mini-chat shards` again"


def test_a_flipped_byte_is_found_when_verifying(shards: Path) -> None:
    path = shards / "train-00001.ds"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    TokenDocuments(shards, "train")
    assert message(shards, verify=True).startswith(f"{path}: its bytes are not those that were written; run ")


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "train-00001.ds.index").unlink()
    assert message(shards).startswith(f"{shards / 'train-00001.ds.index'}: missing, though the manifest names it; run ")


def test_shards_without_a_manifest_are_not_finished(shards: Path) -> None:
    (shards / MANIFEST).unlink()
    assert message(shards).startswith(f"{shards}: no {MANIFEST}, so these are no finished shards; run ")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', ""])
def test_a_damaged_manifest_is_one_line(shards: Path, content: str) -> None:
    (shards / MANIFEST).write_text(content)
    assert str(shards / MANIFEST) in message(shards)


def test_an_unknown_split_is_told_with_those_there_are(shards: Path) -> None:
    assert message(shards, split="valid-en") == f"{shards}: no split valid-en; there are train"


def test_the_fingerprint_is_of_every_byte_and_the_tokenizer(tmp_path: Path) -> None:
    fingerprints = set()
    for number, (documents, tokenizer) in enumerate(
        [([[1, 2]], "a"), ([[1, 3]], "a"), ([[1], [2]], "a"), ([[1, 2]], "b")]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        writer = ShardWriter(directory, "train", 100)
        for document in documents:
            writer.add(np.array(document, np.uint16))
        write_manifest(directory, {"train": writer.close()}, tokenizer=tokenizer)
        fingerprints.add(read_manifest(directory)["fingerprint"])
    assert len(fingerprints) == 4
