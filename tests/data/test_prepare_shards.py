"""Preparing shards: documents are held out by their hash, weighed and counted; only what changed is done again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny import chinese, english, write_jsonl
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.data import document_runs
from mini_chat.data.documents import read_documents
from mini_chat.data.encoding import encode_text
from mini_chat.data.holdout import holdout_hash, holdout_share
from mini_chat.data.prepare_shards import main, prepare_shards
from mini_chat.data.tally import Tally
from mini_chat.data.token_shards import TokenDocuments
from mini_chat.data.write_shards import HELD_OUT_UNUSED, LANGUAGE_LEFT_OUT, LEFT_OUT, NEAR_DUPLICATE
from mini_chat.errors import UserError

Prepare = Callable[..., dict[str, Any]]


@pytest.fixture
def prepare(tokenizer_directory: Path, make_recipe: Callable[..., Recipe], tmp_path: Path) -> Prepare:
    """Write `tmp_path/shards` (or `out`) from the given sources; `shards={…}` changes settings."""

    def run(*sources: Source, out: str = "shards", tokenizer: Path | None = None, **sections: Any) -> dict[str, Any]:
        recipe = make_recipe(**{"machine": {"processes": 1}} | sections)
        return prepare_shards(list(sources), tokenizer or tokenizer_directory, tmp_path / out, recipe)

    return run


def source(path: Path, **more: Any) -> Source:
    return Source(path=str(path), **more)


def texts(directory: Path, split: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    documents = TokenDocuments(directory, split, verify=True)
    decoded = [str(tokenizer.decode(documents.document(number).tolist())) for number in range(len(documents))]
    assert all(text.endswith("<|endoftext|>") for text in decoded)
    return [text.removesuffix("<|endoftext|>") for text in decoded]


def test_documents_are_held_out_by_their_hash_and_are_in_one_split_only(
    prepare: Prepare, corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    prepare(source(corpus / "en.jsonl"), source(corpus / "zh.jsonl"))
    written = {english(number): "en" for number in range(120)} | {chinese(number): "zh" for number in range(120)}
    splits = {name: texts(tmp_path / "shards", name, tokenizer) for name in ("train", "valid-en", "valid-zh")}
    assert sorted(text for split in splits.values() for text in split) == sorted(written), "every document once"
    for name, found in splits.items():
        for text in found:
            held_out = holdout_share(text, 0.1)
            assert name == (f"valid-{written[text]}" if held_out else "train")
    assert len(splits["valid-en"]) > 3 and len(splits["valid-zh"]) > 3
    in_order = [text for text in written if text in set(splits["train"])]
    assert splits["train"] != in_order, "shuffled"


def test_the_counts_per_language_are_those_of_the_documents(
    prepare: Prepare, corpus: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    manifest = prepare(source(corpus / "en.jsonl"), source(corpus / "zh.jsonl"))
    for language, make in (("en", english), ("zh", chinese)):
        train = [text for text in map(make, range(120)) if not holdout_share(text, 0.1)]
        valid = [text for text in map(make, range(120)) if holdout_share(text, 0.1)]
        tokens = sum(len(encode_text(tokenizer, text)) + 1 for text in train)
        assert manifest["train"]["documents"][language] == len(train)
        assert manifest["train"]["tokens"][language] == tokens
        assert manifest["train"]["bytes"][language] == sum(len(text.encode()) for text in train)
        assert manifest["splits"][f"valid-{language}"]["documents"] == len(valid)
        assert manifest["splits"][f"valid-{language}"]["bytes"] == sum(len(text.encode()) for text in valid)
    assert manifest["splits"]["train"]["tokens"] == sum(manifest["train"]["tokens"].values())


def test_weight_2_doubles_and_weight_half_takes_about_half(
    prepare: Prepare, corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    manifest = prepare(source(corpus / "en.jsonl", weight=2), source(corpus / "zh.jsonl", weight=0.5))
    found = texts(tmp_path / "shards", "train", tokenizer)
    kept = [text for text in map(english, range(120)) if not holdout_share(text, 0.1)]
    assert sorted(text for text in found if text.startswith(tuple("TABML"))) == sorted(kept * 2)
    half = [text for text in found if text.startswith("小")]
    assert len(half) == len(set(half)) and 35 <= len(half) <= 73
    left_out = sum(not holdout_share(chinese(number), 0.1) for number in range(120)) - len(half)
    assert manifest["accounting"]["dropped"] == {LEFT_OUT: left_out}


def test_read_is_written_plus_dropped_and_written_is_what_the_splits_have(prepare: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mixed.jsonl", [{"text": english(number)} for number in range(100)])
    with open(path, "ab") as file:
        file.write(b'{"text": ""}\nnot json\n[1]\n{"other": 1}\n{"text": "\xff"}\n{"text": 5}\n')
    manifest = prepare(source(path), shards={"validation_share": 0.3, "validation_max_documents": 5})
    account = manifest["accounting"]
    held_out = sum(holdout_share(english(number), 0.3) for number in range(100))
    assert account["read"] == 106 == account["written"] + sum(account["dropped"].values())
    assert account["written"] == sum(split["documents"] for split in manifest["splits"].values())
    assert account["dropped"][HELD_OUT_UNUSED] == held_out - 5 > 0
    assert sum(account["dropped"].values()) == 6 + held_out - 5


def bits(directory: Path) -> dict[str, bytes]:
    """All that shards are, but for what was asked for, which has the times of the input."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name != "step.json"}


def test_the_order_is_a_function_of_the_seed(prepare: Prepare, corpus: Path, tmp_path: Path) -> None:
    given = source(corpus / "en.jsonl"), source(corpus / "zh.jsonl")
    once = prepare(*given)["fingerprint"]
    assert prepare(*given, out="again")["fingerprint"] == once
    assert prepare(*given, out="other", seed=2)["fingerprint"] != once


@pytest.mark.parametrize("changed", [{"machine": {"processes": 2}}, {"shards": {"memory_bytes": 1_000_000}}])
def test_neither_processes_nor_memory_change_a_byte(
    prepare: Prepare, corpus: Path, tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [source(corpus / "en.jsonl", weight=2.5), source(corpus / "zh.jsonl")]
    shards = {"shard_bytes": 4096, "languages": {"en": 1, "zh": 1}}
    prepare(*given, shards=shards)
    changed = {"shards": {}} | changed
    if "memory_bytes" in changed["shards"]:  # many runs, though the corpus is small
        monkeypatch.setattr("mini_chat.data.shuffle.HOLDING_BYTES", 10_000)
        monkeypatch.setattr(document_runs, "BATCH_DOCUMENTS", 7)
    prepare(*given, out="again", **changed | {"shards": shards | changed["shards"]})
    assert bits(tmp_path / "again") == bits(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("train-*.ds"))) > 2


def test_equal_documents_do_not_come_to_lie_side_by_side(prepare: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "en.jsonl", [{"text": english(number % 2)} for number in range(400)])
    prepare(source(path), shards={"validation_share": 0.0})
    split = TokenDocuments(tmp_path / "shards", "train")
    documents = [split.document(number).tobytes() for number in range(len(split))]
    same = sum(one == other for one, other in pairwise(documents))
    assert 150 < same < 250


def test_languages_get_the_shares_that_were_asked_for(
    prepare: Prepare, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    sources = [
        source(write_jsonl(tmp_path / "en.jsonl", [{"text": english(number)} for number in range(600)]), language="en"),
        source(write_jsonl(tmp_path / "zh.jsonl", [{"text": chinese(number)} for number in range(150)]), language="zh"),
    ]
    plain = prepare(*sources, out="plain", shards={"validation_share": 0.0})
    asked = {"validation_share": 0.0, "languages": {"en": 1, "zh": 1}, "max_epochs": 8}
    manifest = prepare(*sources, shards=asked)
    assert manifest["mixing"]["shares"]["zh"] == pytest.approx(0.5, abs=0.02)
    assert manifest["mixing"]["epochs"]["en"] == 1
    epochs = manifest["mixing"]["epochs"]["zh"]
    assert epochs == pytest.approx(plain["train"]["tokens"]["en"] / plain["train"]["tokens"]["zh"], rel=1e-5)
    assert 2 < epochs < 8
    seen = Counter(text for text in texts(tmp_path / "shards", "train", tokenizer) if text.startswith("小"))
    assert set(seen.values()) == {int(epochs), int(epochs) + 1} and len(seen) == 150
    assert manifest["accounting"]["written"] == 750, "a document counts once, however often it is seen"

    bounded = prepare(*sources, shards=asked | {"max_epochs": 2})
    assert bounded["mixing"]["shares"]["zh"] == pytest.approx(0.5, abs=0.05)
    assert bounded["mixing"]["epochs"]["zh"] == pytest.approx(2)
    left = bounded["accounting"]["dropped"][LANGUAGE_LEFT_OUT]
    assert left == 600 - bounded["train"]["documents"]["en"] > 100


@pytest.mark.parametrize(
    ("languages", "line"),
    [
        ({"en": 1}, "shards.languages: no share for zh, in which there are documents; 0 omits it"),
        ({"en": 1, "zh": 1, "fr": 1}, "shards.languages: no document to train on is in fr; there are en, zh"),
        ({"en": 0, "zh": 0}, "shards.languages: every share is 0; give a language more"),
    ],
)
def test_shares_that_cannot_be_had_are_told_in_one_line(
    prepare: Prepare, corpus: Path, languages: dict[str, float], line: str
) -> None:
    with pytest.raises(UserError) as caught:
        prepare(source(corpus / "en.jsonl"), source(corpus / "zh.jsonl"), shards={"languages": languages})
    assert str(caught.value) == line


def edited(text: str, draw: random.Random, share: float) -> str:
    """The text with so many of its words replaced."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), int(share * len(words))):
        words[place] = draw.choice(("cat", "river", "Anna", "lives"))
    return " ".join(words)


def test_edited_copies_of_held_out_documents_are_not_trained_on(
    prepare: Prepare, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    draw = random.Random(0)
    words = [word for number in range(120) for word in english(number).split(" ")]
    originals = [" ".join(draw.choice(words) for _ in range(150)) for _ in range(60)]
    held_out = [text for text in originals if holdout_share(text, 0.2)]
    assert len(held_out) > 5
    light = [edited(text, draw, 0.02) for text in held_out]
    rewritten = [edited(text, draw, 0.5) for text in held_out]
    cased = [text.upper() for text in held_out]
    # The copies' own hashes must not hold them out; case and white space do not change the hash at all.
    light, rewritten = ([t for t in copies if not holdout_share(t, 0.2)] for copies in (light, rewritten))
    everything = [{"text": text} for text in originals + light + rewritten + cased]
    shards = {"validation_share": 0.2, "validation_max_documents": 1000}
    manifest = prepare(source(write_jsonl(tmp_path / "en.jsonl", everything)), shards=shards)
    train = set(texts(tmp_path / "shards", "train", tokenizer))
    assert light and not train & set(light)
    assert manifest["accounting"]["dropped"] == {NEAR_DUPLICATE: len(light)}
    assert rewritten and train >= set(rewritten)
    assert not train & set(cased) and set(texts(tmp_path / "shards", "valid-en", tokenizer)) >= set(cased)

    manifest = prepare(source(tmp_path / "en.jsonl"), shards=shards | {"near_duplicates": 0})
    assert set(texts(tmp_path / "shards", "train", tokenizer)) >= set(light)


def test_of_too_many_held_out_documents_those_of_the_lowest_hashes_are_kept(
    prepare: Prepare, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_jsonl(tmp_path / "en.jsonl", [{"text": english(number)} for number in range(200)])
    prepare(source(path), shards={"validation_share": 0.3, "validation_max_documents": 5})
    ranked = sorted((english(number) for number in range(200)), key=holdout_hash)
    assert texts(tmp_path / "shards", "valid-en", tokenizer) == ranked[:5]
    assert not set(ranked[5:20]) & set(texts(tmp_path / "shards", "train", tokenizer)), "nor are they trained on"


def modified(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}


def test_finished_shards_are_kept_until_something_changes(
    prepare: Prepare, corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "en.jsonl"
    path.write_bytes((corpus / "en.jsonl").read_bytes())
    first = prepare(source(path))
    times = modified(tmp_path / "shards")
    assert prepare(source(path)) == first
    assert modified(tmp_path / "shards") == times

    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(content, indent=1))
    changes: list[dict[str, Any]] = [
        {"seed": 3},
        {"shards": {"validation_share": 0.2}},
        {"shards": {"shard_bytes": 5000}},
        {"data": {"max_line_bytes": 1000}},
        {"tokenizer": other},
    ]
    for change in changes:
        (tmp_path / "shards" / "manifest.json").write_text("made again?")
        capsys.readouterr()
        prepare(source(path), **change)
        assert "changed since the last run; made again" in capsys.readouterr().err
    prepare(source(path))
    with open(path, "a") as file:
        file.write('{"text": "One more."}\n')
    changed = prepare(source(path))
    assert "sources changed since the last run; made again" in capsys.readouterr().err
    assert changed["accounting"]["read"] == first["accounting"]["read"] + 1


def test_damaged_shards_are_said_and_made_again(prepare: Prepare, corpus: Path, tmp_path: Path) -> None:
    prepare(source(corpus / "en.jsonl"))
    whole = bits(tmp_path / "shards")
    (tmp_path / "shards" / "train-00000.ds").write_bytes(b"")
    prepare(source(corpus / "en.jsonl"))
    assert bits(tmp_path / "shards") == whole


def test_another_shard_size_needs_no_encoding_anew_while_the_runs_are_there(
    prepare: Prepare, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [source(corpus / "en.jsonl"), source(corpus / "zh.jsonl")]
    prepare(*given, out="whole", shards={"shard_bytes": 5000})
    with monkeypatch.context() as patch:
        patch.setattr("mini_chat.data.write_shards.write_manifest", broken)
        with pytest.raises(UserError, match="the disk is full"):
            prepare(*given)
    monkeypatch.setattr(document_runs, "BatchEncoder", broken)
    prepare(*given, shards={"shard_bytes": 5000})
    assert bits(tmp_path / "shards") == bits(tmp_path / "whole")


def broken(*_: Any, **__: Any) -> None:
    raise UserError("the disk is full")


def test_documents_are_encoded_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "x" * size} for size in (5, 5, 50, 1, 1, 1, 1, 1)])
    monkeypatch.setattr(document_runs, "BATCH_CHARACTERS", 20)
    monkeypatch.setattr(document_runs, "BATCH_DOCUMENTS", 4)
    documents = read_documents([source(path)], Tally(), 1000)
    batches = list(document_runs.batches(3, {str(path): 5}, documents, ("en", "zh")))
    assert [[len(text) for text in batch.texts] for batch in batches] == [[5, 5, 50], [1] * 4, [1]]
    assert [batch.numbers for batch in batches] == [[1, 2, 3], [4, 5, 6, 7], [8]]
    assert {batch.source for batch in batches} == {3} and batches[0].files == [5, 5, 5]


def test_a_document_longer_than_a_shard_has_a_shard_of_its_own(
    prepare: Prepare, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = " ".join(english(number) for number in range(300))
    written = [english(0), long, english(1), english(2)]
    path = write_jsonl(tmp_path / "en.jsonl", [{"text": text} for text in written])
    manifest = prepare(source(path), shards={"shard_bytes": 4096, "validation_share": 0.0})
    assert sorted(texts(tmp_path / "shards", "train", tokenizer)) == sorted(written)
    (alone,) = [file for file in manifest["splits"]["train"]["files"] if 2 * file["tokens"] > 4096]
    assert alone["documents"] == 1


def many_tiny_documents(prepare: Prepare, tmp_path: Path, number: int) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("a\n" * number)
    manifest = prepare(source(path), shards={"validation_share": 0.0, "shard_bytes": number, "memory_bytes": 2_000_000})
    assert manifest["splits"]["train"]["documents"] == number == manifest["accounting"]["written"]
    assert manifest["splits"]["train"]["tokens"] == 2 * number
    assert len(manifest["splits"]["train"]["files"]) == 4


def test_documents_of_one_character_are_documents(prepare: Prepare, tmp_path: Path) -> None:
    many_tiny_documents(prepare, tmp_path, 50_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_documents_of_one_character(prepare: Prepare, tmp_path: Path) -> None:
    many_tiny_documents(prepare, tmp_path, 10_000_000)


def test_a_vocabulary_over_uint16_is_stored_as_uint32(
    prepare: Prepare, corpus: Path, tokenizer_directory: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    content = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    last = max(content["added_tokens"], key=lambda token: token["id"])
    content["added_tokens"] += [
        {**last, "id": number, "content": f"<|more_{number}|>"} for number in range(last["id"] + 1, 65_540)
    ]
    large = tmp_path / "large"
    large.mkdir()
    (large / "tokenizer.json").write_text(json.dumps(content))
    given = source(corpus / "zh.jsonl")
    narrow, wide = prepare(given, out="narrow"), prepare(given, tokenizer=large)
    assert (narrow["dtype"], wide["dtype"]) == ("uint16", "uint32")
    assert narrow["train"] == wide["train"]
    assert texts(tmp_path / "shards", "train", tokenizer) == texts(tmp_path / "narrow", "train", tokenizer)
    assert (tmp_path / "shards" / "train-00000.ds").stat().st_size == 4 * wide["splits"]["train"]["tokens"]


def test_the_command_that_stands_alone(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, paths = tmp_path / "out", [str(corpus / "en.jsonl"), str(corpus / "zh.jsonl")]
    options = ["--tokenizer", str(tokenizer_directory), "--output", str(out), "--processes", "1"]
    assert main([*paths, *options]) == 0
    assert len(TokenDocuments(out, "train", verify=True)) > 200
    assert main([str(tmp_path / "nothing"), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"prepare_shards: error: {tmp_path}/nothing: no such file or folder; check the path in the recipe"


def test_nothing_left_to_train_on_is_one_line(prepare: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", [{"text": english(0)}])
    with pytest.raises(UserError, match=r"^shards: no document left to train on; 1 read = 1 kept") as caught:
        prepare(source(path), shards={"validation_share": 0.9999999})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_no_process_of_the_corpus_loads_torch_or_transformers() -> None:
    """Memory of all of them together is a promise."""
    code = "import sys, mini_chat.data.prepare_shards; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
