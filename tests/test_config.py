"""Recipes: what is wrong with one is told at once, a line a problem, with the place and the nearest right name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mini_chat import model_size
from mini_chat.config import (
    TRAINING_STAGES,
    Machine,
    Recipe,
    describe_section,
    find_recipe,
    keys_of_size,
    load_recipe,
)
from mini_chat.device import choose
from mini_chat.errors import UserError
from mini_chat.trainer.stage import identity

# (the recipe, the lines that tell what is wrong with it; {path} is the file's)
BAD = {
    "unknown key": ("pretrain: {lr_mx: 1.0}", ["{path}: pretrain.lr_mx: unknown key; did you mean lr_max?"]),
    "unknown section": ("modle: {hidden_size: 64}", ["{path}: modle: unknown key; did you mean model?"]),
    "unknown key far from all": (
        "evaluate: {zzzzz: 1}",
        ["{path}: evaluate.zzzzz: unknown key; known: max_new_tokens, batch_size"],
    ),
    "unknown key in a list": (
        "data: {documents: [{path: a, langage: en}]}",
        ["{path}: data.documents.0.langage: unknown key; did you mean language?"],
    ),
    "missing value": (
        "data: {documents: [{language: en}]}",
        ["{path}: data.documents.0.path: missing; give it a value"],
    ),
    "wrong type": (
        "pretrain: {steps: many}",
        ["{path}: pretrain.steps: input should be a valid integer, unable to parse string as an integer, not 'many'"],
    ),
    "value for a section": (
        "pretrain: 5",
        ["{path}: pretrain: a section of keys belongs here, not 5"],
    ),
    "list for a value": ("sft: {epochs: [1]}", ["{path}: sft.epochs: input should be a valid number, not [1]"]),
    "fraction for a count": (
        "sft: {steps: 1.5}",
        ["{path}: sft.steps: input should be a valid integer, got a number with a fractional part, not 1.5"],
    ),
    "unknown choice": (
        "sft: {optimizer: sgd}",
        ["{path}: sft.optimizer: input should be 'muon' or 'adamw', not 'sgd'"],
    ),
    "unknown stage": (
        "stages: [pretrain, dop]",
        [
            "{path}: stages.1: input should be 'world', 'fetch', 'extract', 'simplify', 'clean', 'tokenizer', "
            "'shards', 'pretrain', 'sft', 'dpo' or 'report', "
            "not 'dop'"
        ],
    ),
    "nan": ("dpo: {beta: .nan}", ["{path}: dpo.beta: input should be a finite number, not nan"]),
    "infinite": ("sft: {lr_max: .inf}", ["{path}: sft.lr_max: input should be a finite number, not inf"]),
    "learning rate 0": ("sft: {lr_max: 0}", ["{path}: sft.lr_max: input should be greater than 0, not 0"]),
    "negative": (
        "pretrain: {steps: -1}",
        ["{path}: pretrain.steps: input should be greater than or equal to 0, not -1"],
    ),
    "share of 1": (
        "shards: {validation_share: 1}",
        ["{path}: shards.validation_share: input should be less than 1, not 1"],
    ),
    "seed too large for torch": (
        "seed: 9223372036854775808",
        ["{path}: seed: input should be less than 9223372036854775808, not 9223372036854775808"],
    ),
    "heads that do not divide": (
        "model: {hidden_size: 100, num_attention_heads: 12}",
        ["{path}: model: num_attention_heads 12 does not divide hidden_size 100; change one or give head_dim"],
    ),
    "key and value heads that do not divide": (
        "model: {num_key_value_heads: 5}",
        ["{path}: model: num_key_value_heads 5 does not divide num_attention_heads 12"],
    ),
    "odd head": (
        "model: {hidden_size: 36}",
        ["{path}: model: head_dim is odd; rotary embeddings turn pairs of dimensions, choose an even one"],
    ),
    "fraction of a size": (
        "model: {size: 0.5}",
        ["{path}: model.size: input should be a valid integer, got a number with a fractional part, not 0.5"],
    ),
    "size no machine holds": (
        "model: {size: 1000}",
        ["{path}: model.size: input should be less than or equal to 48, not 1000"],
    ),
    "negative size": ("model: {size: -1}", ["{path}: model.size: input should be greater than or equal to 0, not -1"]),
    "size in words": (
        "model: {size: small}",
        [
            "{path}: model.size: input should be a valid integer, unable to parse string as an integer, not 'small'",
        ],
    ),
    "behind a wrong size": (  # nothing is said of the defaults in the place of what it would have given
        "model: {size: 1000, num_key_value_heads: 5}\npretrain: {row_tokens: 1000, micro_tokens: 1000}",
        ["{path}: model.size: input should be less than or equal to 48, not 1000"],
    ),
    "heads that do not divide those of a size": (
        "model: {size: 8, num_key_value_heads: 3}\npretrain: {row_tokens: 1000, micro_tokens: 1000}",
        ["{path}: model: num_key_value_heads 3 does not divide num_attention_heads 8"],
    ),
    "more experts a token than experts": (
        "model: {num_experts: 2, num_experts_per_tok: 3}",
        ["{path}: model: num_experts_per_tok 3 is over num_experts 2"],
    ),
    "vocabulary over uint16": (
        "tokenizer: {vocab_size: 65537}",
        ["{path}: tokenizer: vocab_size 65537 is over 65536; a tokenizer made here fits uint16, choose a smaller one"],
    ),
    "row over the context": (
        "model: {max_position_embeddings: 512}\nsft: {row_tokens: 256}\ndpo: {row_tokens: 512}",
        ["{path}: pretrain.row_tokens 1024 is over model.max_position_embeddings 512"],
    ),
    "batch of no whole rows": (
        "pretrain: {row_tokens: 100, batch_tokens: 250, micro_tokens: 100}",
        ["{path}: pretrain: batch_tokens 250 is not a multiple of row_tokens 100"],
    ),
    "several in one section": (
        "pretrain: {row_tokens: 100, batch_tokens: 250, micro_tokens: 130}",
        [
            "{path}: pretrain: batch_tokens 250 is not a multiple of row_tokens 100",
            "{path}: pretrain: micro_tokens 130 is not a multiple of row_tokens 100",
        ],
    ),
    "behind a wrong value": (  # rows are held to the model, and to the batch, only where all values are right
        "model: {max_position_embeddings: 512}\npretrain: {lr_max: 0, row_tokens: 500, batch_tokens: 700}\n"
        "sft: {optimizer: sgd, row_tokens: 1024}\ndpo: {row_tokens: 512}",
        [
            "{path}: pretrain.lr_max: input should be greater than 0, not 0",
            "{path}: sft.optimizer: input should be 'muon' or 'adamw', not 'sgd'",
            "{path}: pretrain: batch_tokens 700 is not a multiple of row_tokens 500",
            "{path}: pretrain: micro_tokens 8192 is not a multiple of row_tokens 500",
            "{path}: sft.row_tokens 1024 is over model.max_position_embeddings 512",
        ],
    ),
    "behind a wrong value of its own": (  # nothing is said of the default in the wrong value's place
        "model: {max_position_embeddings: 512}\npretrain: {row_tokens: many}\nsft: {row_tokens: 256}\n"
        "dpo: {row_tokens: 512}",
        [
            "{path}: pretrain.row_tokens: input should be a valid integer, unable to parse string as an integer, "
            "not 'many'"
        ],
    ),
    "bad YAML": (
        "name: x\nmodel:\n  hidden_size: [1, 2\nsft: {}\n",
        ["{path}:4: not valid YAML (expected ',' or ']', but got ':'); mend that line"],
    ),
    "tab in YAML": (
        "name: x\n\tseed: 1\n",
        ["{path}:2: not valid YAML (found character '\\t' that cannot start any token); mend that line"],
    ),
    "impossible date": (
        "name: 2024-13-45",
        ["{path}: a value is no valid YAML (month must be in 1..12); quote it"],
    ),
    "no mapping": ("- a\n- b\n", ["{path}: a recipe is a mapping of sections, see config/demo.yaml"]),
    "several at once": (
        "sed: 1\npretrain: {lr_max: 0, steps: x}\nmodel: {hidden_size: 100}\n",
        [
            "{path}: model: num_attention_heads 12 does not divide hidden_size 100; change one or give head_dim",
            "{path}: pretrain.steps: input should be a valid integer, unable to parse string as an integer, not 'x'",
            "{path}: pretrain.lr_max: input should be greater than 0, not 0",
            "{path}: sed: unknown key; did you mean seed?",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_told_line_by_line(case: str, tmp_path: Path) -> None:
    text, lines = BAD[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines() == [line.replace("{path}", str(path)) for line in lines]


def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^.*/no.yaml: cannot read \(No such file or directory\); recipes are in config/$"
    ):
        load_recipe(tmp_path / "no.yaml")
    (tmp_path / "gbk.yaml").write_bytes("name: 你好".encode("gb18030"))
    with pytest.raises(UserError, match=r"gbk.yaml: not UTF-8 text; a recipe is a YAML file, see config/$"):
        load_recipe(tmp_path / "gbk.yaml")
    with pytest.raises(UserError, match=r"cannot read \(Is a directory\)"):
        load_recipe(tmp_path)


def test_an_unknown_recipe_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dmeo: no such recipe; did you mean demo\?$"):
        find_recipe("dmeo")
    with pytest.raises(UserError, match=r"^xyzzy: no such recipe; recipes in config/: demo, "):
        find_recipe("xyzzy")
    assert find_recipe("demo").name == "demo.yaml"
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"


def test_a_name_is_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").is_file()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/own.yaml").write_text("name: own")
    assert load_recipe(find_recipe("own")).name == "own"


def test_overrides_lie_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nseed: 3\npretrain: {steps: 7}\nsft:\n")
    recipe = load_recipe(path, {"pretrain.lr_max": "3e-4", "seed": "4", "stages": "[sft]", "tokenizer.hanzi": "8105"})
    assert (recipe.pretrain.steps, recipe.pretrain.lr_max, recipe.seed) == (7, 3e-4, 4)
    assert recipe.stages == ["sft"] and recipe.tokenizer.hanzi == "8105"
    assert load_recipe(path, {"sft.steps": "9"}).sft.steps == 9, "an empty section is one of defaults"
    assert load_recipe(path, {"name": "7"}).directory == Path("out/7")


def test_a_size_fills_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {size: 8, intermediate_size: 1000}\npretrain: {lr_max: 0.1}\n")
    recipe = load_recipe(path, {"pretrain.weight_decay": "0.5"})
    assert (recipe.model.hidden_size, recipe.model.num_hidden_layers) == (512, 8)
    assert recipe.pretrain.muon_lr_max == model_size.MUON_LR_MAX.at(8)
    given = (recipe.model.intermediate_size, recipe.pretrain.lr_max, recipe.pretrain.weight_decay)
    assert given == (1000, 0.1, 0.5)


@pytest.mark.parametrize("key", keys_of_size())
def test_a_key_of_its_own_leaves_the_others_to_the_size(key: str) -> None:
    def values(**overrides: str) -> dict[str, Any]:
        recipe = load_recipe(None, {"model.size": "8", **overrides})
        return {
            key: getattr(getattr(recipe, section), name) for key in keys_of_size() for section, name in [key.split(".")]
        }

    given = {"model.hidden_size": 1024, "model.num_attention_heads": 4}.get(
        key, 2 if key.startswith("model.") else 2048
    )
    assert values(**{key: str(given)}) == values() | {key: given}


def test_a_size_on_the_command_line_goes_before_the_recipe_and_after_the_command_line() -> None:
    """Otherwise it would do nothing for a recipe that spells its shape out."""
    path = find_recipe("slm-124m")
    recipe = load_recipe(path, {"model.size": "8", "pretrain.lr_max": "0.1", "sft.epochs": "3"})
    spelled = load_recipe(None, {"model.size": "8"})
    assert recipe.model.model_dump() == spelled.model.model_dump()
    assert (recipe.pretrain.batch_tokens, recipe.dpo.lr_max) == (spelled.pretrain.batch_tokens, spelled.dpo.lr_max)
    assert (recipe.pretrain.lr_max, recipe.pretrain.warmup_steps, recipe.sft.epochs) == (0.1, 200, 3)
    assert load_recipe(path, {"model.size": "0"}) == load_recipe(path), "0 is off"


def test_a_run_by_its_size_is_the_run_of_the_same_recipe_spelled_out() -> None:
    device = choose(Machine(device="cpu"))
    sized = load_recipe(None, {"model.size": "6"})
    spelled = Recipe.model_validate(sized.model_dump())
    assert sized.model.size == 6 and spelled.model.size == 0
    assert sized.model_dump() == spelled.model_dump()
    for stage in TRAINING_STAGES:
        ours, theirs = (
            identity(getattr(recipe, stage), device, seed=recipe.seed, model=recipe.model.model_dump())
            for recipe in (sized, spelled)
        )
        assert ours == theirs
        assert ours["model"].keys() == Recipe().model.model_dump().keys(), (
            "checkpoints of before the size are gone on from"
        )


@pytest.mark.parametrize(
    ("key", "text", "line"),
    [
        ("pretrain.lr_mx", "1", "pretrain.lr_mx: unknown key; did you mean lr_max?"),
        ("name.x", "1", "--name.x: name is a value, not a section"),
        ("seed", "", "seed: input should be a valid integer, not None"),
        ("samples", "[a", "--samples [a: not a value; quote it"),
        ("name", "2024-13-45", "--name 2024-13-45: not a value; quote it"),
    ],
)
def test_a_bad_override_is_one_line(key: str, text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path, {key: text})
    assert str(caught.value).removeprefix(f"{path}: ") == line


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_every_option_says_what_it_means() -> None:
    for section in (
        "",
        *(name for name, info in Recipe.model_fields.items() if hasattr(info.annotation, "model_fields")),
    ):
        lines = describe_section(section)
        options = [place for place, line in enumerate(lines) if line.startswith("  --")]
        assert options or section == ""
        for place in options:
            assert len(lines[place + 1].strip()) > 10, lines[place]
            assert "None" not in lines[place + 1]


@pytest.mark.parametrize(("given", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_a_switch_is_the_word_that_was_written(given: str, meant: str) -> None:
    assert load_recipe(None, {"machine.compile": given}).machine.compile == meant
