"""A run from its first stage to its last: what is finished is skipped, what changed is done again, all is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from tiny import recorded
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mini_chat import pipeline
from mini_chat.config import STAGE_RECORD, Recipe, Source
from mini_chat.data.token_shards import TokenDocuments
from mini_chat.errors import UserError
from mini_chat.files import exclusive, write_json
from mini_chat.pipeline import Run, expanded, measured, run_stages
from mini_chat.trainer.stage import finish_stage, load_model, load_tokenizer, stop_tokens, weights_fingerprint

Make = Callable[..., Recipe]


@pytest.fixture
def copied(finished_run: Recipe, make_recipe: Make, tmp_path: Path) -> Make:
    """A recipe whose run is a copy of the finished one; `copied(section={…})` changes settings."""

    def make(**sections: Any) -> Recipe:
        if not (tmp_path / "run").exists():
            shutil.copytree(finished_run.directory, tmp_path / "run")
        return make_recipe(**sections)

    return make


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_finished_stage_is_a_whole_hugging_face_directory(stage: str, finished_run: Recipe) -> None:
    directory = finished_run.directory / stage
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "metrics.jsonl",
        "state",
        STAGE_RECORD,
    }
    assert not [path for path in directory.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth", ".partial"}]
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.generation_config.eos_token_id == [
        tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")
    ]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert all(str(file.get_slice(key).get_dtype()) == "F32" for key in file.keys())  # noqa: SIM118


def test_a_second_run_does_nothing(copied: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = copied()
    run_stages(recipe, list(recipe.stages))  # what the data came from has another directory, so it is looked at again

    def times() -> dict[Path, int]:
        files = [path for path in recipe.directory.rglob("*") if path.name not in {"stages.json", ".lock"}]
        return {path: path.stat().st_mtime_ns for path in files if path.is_file()}

    before = times()
    capsys.readouterr()
    run_stages(recipe, list(recipe.stages))
    said = capsys.readouterr().err
    assert [f"{stage}: {recipe.directory / stage} is finished" in said for stage in recipe.stages] == [True] * 5
    assert times() == before


def test_each_stage_takes_another_bit_of_the_one_before_to_be_redone(copied: Make) -> None:
    """A stage whose input changed is neither skipped nor silently gone on with."""
    recipe = copied()
    run_stages(copied(pretrain={"steps": 6}), ["pretrain"])
    shutil.rmtree(recipe.directory / "pretrain")
    run_stages(copied(pretrain={"steps": 5}), ["pretrain"])
    with pytest.raises(UserError, match=r"this checkpoint is of another run \(first_weights was \w+, now \w+\)"):
        run_stages(recipe, ["sft"])
    assert (recipe.directory / "sft" / STAGE_RECORD).is_file()


def test_shards_of_another_tokenizer_are_refused(copied: Make) -> None:
    recipe = copied()
    tokenizer = recipe.directory / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(UserError) as caught:
        run_stages(recipe, ["pretrain"])
    assert str(caught.value) == (
        f"{recipe.directory / 'shards'}: made with another tokenizer; run `mini-chat shards` again"
    )


@pytest.mark.parametrize(
    ("stage", "missing", "line"),
    [
        (
            "shards",
            "tokenizer",
            "{run}/tokenizer: no tokenizer.json; run `mini-chat tokenizer` first or give tokenizer.path",
        ),
        (
            "pretrain",
            "shards",
            "{run}/shards: no manifest.json, so these are no finished shards; run `mini-chat shards` first",
        ),
        ("sft", "pretrain", "{run}/pretrain: no finished model here; run `mini-chat pretrain` first"),
        ("dpo", "sft", "{run}/sft: no finished model here; run `mini-chat sft` first"),
    ],
)
def test_a_stage_without_the_one_before_says_which_to_run(stage: str, missing: str, line: str, copied: Make) -> None:
    recipe = copied()
    shutil.rmtree(recipe.directory / missing)
    with pytest.raises(UserError) as caught:
        run_stages(recipe, [stage])
    assert str(caught.value) == line.replace("{run}", str(recipe.directory))


def test_weights_with_a_flipped_byte_are_refused(copied: Make) -> None:
    recipe = copied()
    path = recipe.directory / "sft" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_model(recipe.directory / "sft")
    assert str(caught.value) == (
        f"{path}: missing or not the bytes that were written; remove {path.parent / STAGE_RECORD} and run again"
    )
    (path.parent / STAGE_RECORD).unlink()
    run_stages(recipe, ["sft"])  # its last checkpoint is there still
    load_model(recipe.directory / "sft")


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": {}}', "{"])
def test_a_damaged_record_of_a_stage_is_one_line(content: str, copied: Make) -> None:
    recipe = copied()
    (recipe.directory / "sft" / STAGE_RECORD).write_text(content)
    with pytest.raises(UserError, match=r"stage.json: (damaged|not valid JSON)") as caught:
        weights_fingerprint(recipe.directory / "sft")
    assert "\n" not in str(caught.value)


def test_a_shard_with_a_flipped_byte_is_refused_before_training(copied: Make) -> None:
    recipe = copied(pretrain={"steps": 9})
    path = recipe.directory / "shards" / "train-00000.ds"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its bytes are not those that were written; run `mini-chat shards` again"):
        run_stages(recipe, ["pretrain"])


def test_a_ready_tokenizer_that_changed_is_taken_again(
    make_recipe: Make, tokenizer_directory: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    shutil.copytree(tokenizer_directory, ready)
    recipe = make_recipe(tokenizer={"path": str(ready)})
    run_stages(recipe, ["tokenizer"])
    copy = recipe.directory / "tokenizer" / "tokenizer.json"
    before = copy.read_bytes()
    content = json.loads((ready / "tokenizer.json").read_text())
    (ready / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "NFC"}}))
    run_stages(recipe, ["tokenizer"])
    assert copy.read_bytes() != before


def test_a_kill_between_tokenizer_and_its_mark_is_no_finished_tokenizer(
    make_recipe: Make, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old mark beside the new tokenizer would pass it off as the old one once the recipe is set back."""
    small = make_recipe(tokenizer={"path": "", "vocab_size": 384, "hanzi": "corpus", "reserved_tokens": 1})
    large = make_recipe(tokenizer={"path": "", "vocab_size": 400, "hanzi": "corpus", "reserved_tokens": 1})
    run_stages(small, ["tokenizer"])
    assert len(load_tokenizer(small.directory / "tokenizer")) == 384
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "write_json", lambda path, value: (_ for _ in ()).throw(KeyboardInterrupt()))
        run_stages(large, ["tokenizer"])
    run_stages(small, ["tokenizer"])
    assert len(load_tokenizer(small.directory / "tokenizer")) == 384


def test_a_ready_tokenizer_that_cannot_serve_is_refused(make_recipe: Make, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    backend = Tokenizer(BPE(vocab={f"t{number}": number for number in range(300)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError) as caught:
        run_stages(make_recipe(tokenizer={"path": str(tmp_path / "bare")}), ["tokenizer"])
    assert str(caught.value).startswith(f"tokenizer.path {tmp_path / 'bare'}: it lacks <|endoftext|>, ")


def test_a_ready_tokenizer_over_uint16_serves_every_stage(
    make_recipe: Make, tokenizer_directory: Path, tmp_path: Path
) -> None:
    """Its special tokens, which end documents and turns, are the last ids: cut to 16 bits they would be others."""
    ready = tmp_path / "ready"
    shutil.copytree(tokenizer_directory, ready)
    content = json.loads((ready / "tokenizer.json").read_text())
    special, vocab = content["added_tokens"], content["model"]["vocab"]
    vocab |= {f"more{number}": number for number in range(special[0]["id"], 65_536)}
    for number, token in enumerate(special, 65_536):
        token["id"] = vocab[token["content"]] = number
    (ready / "tokenizer.json").write_text(json.dumps(content))
    recipe = make_recipe(tokenizer={"path": str(ready)})
    run_stages(recipe, list(recipe.stages))
    for data, split in (("shards", "train"), ("sft/data", "train"), ("dpo/data", "train")):
        documents = TokenDocuments(recipe.directory / data, split)
        assert documents.dtype == np.uint32
        assert int(max(documents.document(number).max() for number in range(len(documents)))) >= 65_536
    model: Any = AutoModelForCausalLM.from_pretrained(recipe.directory / "dpo")
    tokenizer: Any = AutoTokenizer.from_pretrained(recipe.directory / "dpo")
    assert model.config.vocab_size == len(tokenizer) == 65_536 + len(special)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id


def test_stages_json_has_seconds_and_memory_of_every_stage(finished_run: Recipe) -> None:
    stages = json.loads((finished_run.directory / "stages.json").read_text())
    assert list(stages) == finished_run.stages
    for entry in stages.values():
        assert entry["seconds"] >= 0 and 50e6 < entry["peak_memory_bytes"] < 100e9


def test_seconds_add_up_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 100.0, 102.0])
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    with pytest.raises(UserError), measured(tmp_path, "sft"):
        raise UserError("x")
    with measured(tmp_path, "sft"):
        pass
    assert json.loads((tmp_path / "stages.json").read_text())["sft"]["seconds"] == 7.0


def test_one_run_is_the_work_of_one_process(make_recipe: Make) -> None:
    recipe = make_recipe()
    with exclusive(recipe.directory), pytest.raises(UserError, match="another mini-chat process is working here"):
        run_stages(recipe, ["tokenizer"])


def test_an_environment_variable_in_a_path_is_replaced_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "/texts")
    assert expanded([Source(path="$TEXTS/a.txt", weight=2)]) == [Source(path="/texts/a.txt", weight=2)]
    monkeypatch.delenv("TEXTS")
    with pytest.raises(UserError, match=r"^\$TEXTS/a\.txt: \$TEXTS is not set; set it, as in "):
        expanded([Source(path="$TEXTS/a.txt")])


def test_the_world_stands_in_where_the_recipe_has_one(make_recipe: Make) -> None:
    without, with_world = Run(make_recipe()), Run(make_recipe(world={"pretrain_documents": 5}))
    assert not any("world" in source.path for source in without.documents("shards"))
    first_two = with_world.documents("shards")[:2]
    assert [Path(source.path).name for source in first_two] == ["pretrain.en.jsonl", "pretrain.zh.jsonl"]
    assert [source.language for source in first_two] == ["en", "zh"]


def test_finish_stage_flushes_every_file_before_it_gets_its_name(
    finished_run: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mini_chat.trainer import stage
    from mini_chat.trainer.loop import Outcome

    flushed: list[str] = []
    replace = Path.replace

    def replacing(self: Path, target: Path) -> Path:
        assert self.name in flushed or self.suffix == ".partial", self
        return replace(self, target)

    monkeypatch.setattr(stage, "fsync_path", recorded(flushed, lambda path: path.name, stage.fsync_path))
    monkeypatch.setattr(Path, "replace", replacing)
    model, tokenizer = load_model(finished_run.directory / "sft"), load_tokenizer(finished_run.directory / "tokenizer")
    (tmp_path / "out").mkdir()
    finish_stage(tmp_path / "out", model, tokenizer, {"a": 1}, Outcome(1, 1, 1.0, 1.0, 0.1, {}, 0))
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(flushed)
    assert load_model(tmp_path / "out").config.eos_token_id == tokenizer.eos_token_id
    assert stop_tokens(tokenizer)[0] == tokenizer.eos_token_id


def test_stages_json_that_is_damaged_is_one_line(make_recipe: Make) -> None:
    recipe = make_recipe()
    write_json(recipe.directory / "stages.json", {})
    (recipe.directory / "stages.json").write_text("{")
    with pytest.raises(UserError, match=r"stages.json: not valid JSON"):
        run_stages(recipe, ["tokenizer"])
