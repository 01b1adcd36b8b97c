"""Our shards and datatrove's are one format: each reads what the other wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mini_chat.config import Recipe, Source
from mini_chat.data.prepare_shards import prepare_shards
from mini_chat.data.token_shards import TokenDocuments, adopt
from mini_chat.errors import UserError

pytest.importorskip("datatrove", reason="datatrove is an optional extra: pip install 'mini-chat[engines]'")


def test_datatrove_reads_our_shards(
    corpus: Path, tokenizer_directory: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from datatrove.utils.dataset import DatatroveFolderDataset

    recipe = make_recipe(shards={"shard_bytes": 4096}, machine={"processes": 1})
    prepare_shards([Source(path=str(corpus / "en.jsonl"))], tokenizer_directory, tmp_path, recipe)
    ours = TokenDocuments(tmp_path, "train")
    theirs = DatatroveFolderDataset(str(tmp_path), 31, "train-*.ds", return_positions=True)
    place = 0
    for tokens, ends in zip(ours.tokens, ours.ends, strict=True):
        begins = {0, *ends.tolist()}
        for row in range(len(tokens) // 32):
            item: dict[str, Any] = theirs[place]
            assert item["input_ids"].tolist() == tokens[row * 32 : row * 32 + 32].tolist()
            for offset, position in enumerate(item["positions"].tolist()):
                if offset:
                    assert (position == 0) == (row * 32 + offset in begins)
            place += 1
    assert place == len(theirs) > 10


def test_datatrove_merges_our_shards(
    corpus: Path, tokenizer_directory: Path, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from datatrove.pipeline.tokens import DocumentTokenizerMerger

    recipe = make_recipe(shards={"shard_bytes": 4096, "validation_share": 0.0}, machine={"processes": 1})
    prepare_shards([Source(path=str(corpus / "en.jsonl"))], tokenizer_directory, tmp_path / "ours", recipe)
    DocumentTokenizerMerger(str(tmp_path / "ours"), str(tmp_path / "merged"), "all", seed=1, progress=False).run()
    (tmp_path / "merged" / "all.ds.metadata").unlink()
    adopt(tmp_path / "merged", "t")
    ours, merged = TokenDocuments(tmp_path / "ours", "train"), TokenDocuments(tmp_path / "merged", "train", verify=True)
    texts = [sorted(split.document(n).tobytes() for n in range(len(split))) for split in (ours, merged)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("size", "with_loss"), [(2, False), (4, True)])
def test_we_read_datatroves_shards(tmp_path: Path, size: int, with_loss: bool) -> None:
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    written = [[1, 2, 3], [70_000 if size == 4 else 9], list(range(50))]
    for name in ("000_a.ds", "001_a.ds"):
        file = TokenizedFile(
            str(tmp_path), name, save_loss_metadata=with_loss, save_final_metadata=True, token_size=size
        )
        for tokens in written:
            file.write(tokens, np.array([token % 2 for token in tokens]) if with_loss else None)
        file.close()
    adopt(tmp_path, "t")
    split = TokenDocuments(tmp_path, "train", verify=True)
    assert split.manifest["dtype"] == {2: "uint16", 4: "uint32"}[size]
    assert [split.document(number).tolist() for number in range(6)] == written * 2
    if with_loss:
        assert [split.mask(number).tolist() for number in range(6)] == [  # type: ignore[union-attr]
            [token % 2 for token in tokens] for tokens in written * 2
        ]


def test_shards_that_do_not_fit_their_index_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.ds file in it; give the folder that datatrove wrote$"):
        adopt(tmp_path, "t")
    np.arange(10, dtype="<u2").tofile(tmp_path / "a.ds")
    with pytest.raises(UserError, match=r"a\.ds\.index: missing; run datatrove's tokenizer with save_index=True$"):
        adopt(tmp_path, "t")
    np.array([3, 11], "<u8").tofile(tmp_path / "a.ds.index")
    with pytest.raises(UserError, match=r"a\.ds: does not fit its index \(11 tokens\); make it again$"):
        adopt(tmp_path, "t")
