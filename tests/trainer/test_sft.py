"""Fine-tuning: the loss is on what the assistant says and nothing else, of every turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import dialogue, write_jsonl
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.data.holdout import holdout_share
from mini_chat.data.packing import IGNORE, PackedDocuments
from mini_chat.data.tally import SetAside, Tally
from mini_chat.data.token_shards import TokenDocuments, read_manifest
from mini_chat.data.write_shards import LEFT_OUT
from mini_chat.errors import UserError
from mini_chat.trainer.sft import CUT, TOO_LONG, encode_dialogue, prepare_dialogues


def test_the_loss_is_on_every_assistant_turn_and_its_end_only(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What does Tom have?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "住在哪里？"},
        {"role": "assistant", "content": "河边。"},
    ]
    path = write_jsonl(tmp_path / "one.jsonl", [{"messages": messages}])
    recipe = make_recipe(sft={"validation_share": 0.0})
    prepare_dialogues(recipe, [Source(path=str(path))], tokenizer, "t", tmp_path / "data")
    split = TokenDocuments(tmp_path / "data", "train", verify=True)
    batch = PackedDocuments(split, 128, 0).batch(0, 1)
    inputs, labels = batch.input_ids_BL[0].tolist(), batch.labels_BL[0].tolist()
    learnt = tokenizer.decode([token for token in labels if token != IGNORE])
    assert learnt == "A cat.<|im_end|>河边。<|im_end|>"
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(split.document(0).tolist()) == whole
    for place, label in enumerate(labels):
        if label != IGNORE:
            assert label == inputs[place + 1] or place + 1 == len(split.document(0)) - 1
    entry = split.manifest["splits"]["train"]
    assert entry["trained_tokens"] == sum(label != IGNORE for label in labels)


def test_the_mask_is_that_of_the_tokenizers_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Stock tools (TRL's assistant_only_loss) go by the template's generation marks."""
    messages = dialogue(0)["messages"]
    ids, mask = encode_dialogue(tokenizer, messages, 500, Tally())
    stock: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids.tolist() == stock["input_ids"]
    assert mask.tolist() == stock["assistant_masks"]


def test_a_dialogue_that_does_not_fit_loses_its_last_turns_and_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = dialogue(0)["messages"]
    whole, _ = encode_dialogue(tokenizer, messages, 500, Tally())
    first, _ = encode_dialogue(tokenizer, messages[:2], 500, Tally())
    for row_tokens in range(len(first) - 1, len(whole) - 1):
        tally = Tally()
        ids, mask = encode_dialogue(tokenizer, messages, row_tokens, tally)
        assert ids.tolist() == first.tolist() and len(mask) == len(ids)
        assert tally.repaired == {CUT: 1}
    exact, _ = encode_dialogue(tokenizer, messages, len(whole) - 1, Tally())
    assert exact.tolist() == whole.tolist(), "n tokens take n - 1 positions"
    with pytest.raises(SetAside, match=TOO_LONG):
        encode_dialogue(tokenizer, messages, len(first) - 2, Tally())


def test_every_dialogue_is_accounted_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    long = {"messages": [{"role": "user", "content": "x " * 300}, {"role": "assistant", "content": "y"}]}
    path = write_jsonl(tmp_path / "d.jsonl", [*map(dialogue, range(40)), long, {"messages": []}, 5])
    recipe = make_recipe(sft={"validation_share": 0.2})
    prepare_dialogues(recipe, [Source(path=str(path), weight=0.5)], tokenizer, "t", tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    account = manifest["accounting"]
    splits = {name: split["documents"] for name, split in manifest["splits"].items()}
    assert account["read"] == 43 == account["written"] + sum(account["dropped"].values())
    assert account["written"] == sum(splits.values())
    assert account["dropped"][TOO_LONG] == 1
    assert account["dropped"][LEFT_OUT] == 40 - sum(splits.values()) > 5
    questions = [dialogue(number)["messages"][0]["content"] for number in range(40)]
    assert sum(splits.values()) - splits["train"] == sum(holdout_share(question, 0.2) for question in questions)


def test_one_question_is_never_on_both_sides(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    records = [dialogue(number) for number in range(30)]
    again = json.loads(json.dumps(records))
    for record in again:
        record["messages"][1]["content"] += " Yes."
    path = write_jsonl(tmp_path / "d.jsonl", records + again)
    recipe = make_recipe(sft={"validation_share": 0.3})
    prepare_dialogues(recipe, [Source(path=str(path))], tokenizer, "t", tmp_path / "data")

    def questions(split: str) -> set[str]:
        documents = TokenDocuments(tmp_path / "data", split)
        texts = [str(tokenizer.decode(documents.document(number).tolist())) for number in range(len(documents))]
        return {text.split("<|im_end|>")[0] for text in texts}

    train = questions("train")
    valid = questions("valid-en") | questions("valid-zh")
    assert train and valid and not train & valid


def test_no_dialogues_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Any) -> None:
    with pytest.raises(UserError, match=r"^sft: no dialogues; name some under data\.dialogues in the recipe$"):
        prepare_dialogues(make_recipe(), [], tokenizer, "t", tmp_path / "data")


def test_prepared_dialogues_are_kept_until_something_changes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Callable[..., Recipe], corpus: Path
) -> None:
    sources = [Source(path=str(corpus / "dialogues.jsonl"))]

    def prepared(**sections: Any) -> tuple[str, int]:
        prepare_dialogues(make_recipe(**sections), sources, tokenizer, "t", tmp_path / "data")
        return read_manifest(tmp_path / "data")["fingerprint"], (tmp_path / "data/manifest.json").stat().st_mtime_ns

    first = prepared()
    assert prepared(sft={"lr_max": 0.1}) == first
    assert prepared(seed=5)[0] != first[0]
    assert prepared()[0] == first[0]


def test_masks_are_stored_as_bytes(finished_run: Recipe) -> None:
    split = TokenDocuments(finished_run.directory / "sft" / "data", "train", verify=True)
    mask = split.mask(0)
    assert mask is not None and mask.dtype == np.uint8 and set(mask.tolist()) == {0, 1}
