"""The training loop: what it computes, what it survives, and that going on is the same as never having stopped."""

from __future__ import annotations

import errno
import json
import signal
from typing import Any

import pytest
import torch
from runs import Killed, Make, broken_at, pretrain, records, run_killed, weights
from tiny import training

from mini_chat.config import Recipe
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.trainer import checkpoint, loop
from mini_chat.trainer.language_modelling import LanguageModelling
from mini_chat.trainer.loop import Interrupted, Window
from mini_chat.trainer.stage import load_model


def test_two_runs_of_one_seed_have_the_same_bits_and_another_seed_has_others(prepared: Make) -> None:
    runs = [prepared("one"), prepared("two"), prepared("three", seed=2)]
    for recipe in runs:
        pretrain(recipe)
    one, two, three = map(weights, runs)
    assert one == two
    assert one != three


def test_going_on_after_kills_gives_the_bits_of_an_undisturbed_run(prepared: Make) -> None:
    undisturbed, killed = prepared("one"), prepared("two")
    pretrain(undisturbed)
    run_killed(killed, 3)
    run_killed(killed, 2)
    pretrain(killed)
    assert weights(killed) == weights(undisturbed)


def test_metrics_after_kills_are_those_of_an_undisturbed_run(prepared: Make) -> None:
    """Checkpoints at 2, 4, 6; validations at 3 and 6; a record each step. The first kill comes after a validation."""
    undisturbed, killed = prepared("one"), prepared("two")
    pretrain(undisturbed)
    run_killed(killed, 3)
    run_killed(killed, 1)
    pretrain(killed)

    def timeless(recipe: Recipe) -> list[dict[str, Any]]:
        passing = {"tokens_per_second", "share_of_limit", "train_seconds"}
        return [{key: value for key, value in record.items() if key not in passing} for record in records(recipe)]

    assert timeless(killed) == timeless(undisturbed)
    kinds = [(record["step"], "loss" in record) for record in records(killed)]
    assert len(kinds) == len(set(kinds)) == 8


def test_a_validation_that_a_kill_cut_off_is_made_again(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared(pretrain={"eval_every": 2, "checkpoint_every": 2})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate", lambda *arguments: (_ for _ in ()).throw(Killed()))
        pretrain(recipe)
    assert [path.name for path in sorted((recipe.directory / "pretrain/state").iterdir())] == ["step-00000002"]
    pretrain(recipe)
    assert [record["step"] for record in records(recipe) if "valid_bpb_en" in record] == [2, 4, 6]


def test_a_kill_before_the_model_is_written_costs_no_step(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, killed = prepared("one"), prepared("two")
    pretrain(undisturbed)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mini_chat.trainer.pretrain.finish_stage", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        pretrain(killed)
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelling, "loss", lambda *arguments: pytest.fail("a step was made again"))
        pretrain(killed)
    assert weights(killed) == weights(undisturbed)
    assert len(records(killed)) == len(records(undisturbed))
    done = json.loads((killed.directory / "pretrain/stage.json").read_text())
    assert done["validation"].keys() == {"bpb_en", "bpb_zh"}


def test_a_finished_stage_is_skipped(prepared: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = prepared()
    pretrain(recipe)
    before = {path: path.stat().st_mtime_ns for path in (recipe.directory / "pretrain").rglob("*")}
    capsys.readouterr()
    pretrain(recipe)
    assert f"pretrain: {recipe.directory / 'pretrain'} is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (recipe.directory / "pretrain").rglob("*")} == before


def test_how_often_to_log_save_or_validate_changes_no_bit(prepared: Make) -> None:
    one, two = prepared("one"), prepared("two", pretrain={"log_every": 5, "checkpoint_every": 3, "eval_every": 1})
    pretrain(one)
    pretrain(two)
    assert weights(one) == weights(two)


def test_a_changed_setting_is_refused_and_named(prepared: Make) -> None:
    run_killed(prepared(), 3)
    before = prepared().pretrain.lr_max
    with pytest.raises(UserError) as caught:
        pretrain(prepared(pretrain={"lr_max": 0.5}, model={"intermediate_size": 96}))
    text = str(caught.value)
    assert "\n" not in text
    assert f"lr_max was {before}, now 0.5" in text
    assert "model.intermediate_size was 64, now 96" in text
    assert "hidden_size" not in text, "only what differs"
    assert f"remove {prepared().directory / 'pretrain'} to begin anew" in text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    name: str, prepared: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, damaged = prepared("one"), prepared("two")
    pretrain(undisturbed)
    run_killed(damaged, 5)
    newest = damaged.directory / "pretrain/state/step-00000004"
    data = bytearray((newest / name).read_bytes())
    place = data.index(b'"step": 4') + 8 if name == "state.json" else len(data) // 2
    data[place] ^= 1  # of state.json: step 5 instead of 4, which is valid JSON all the same
    (newest / name).write_bytes(data)
    capsys.readouterr()
    pretrain(damaged)
    said = capsys.readouterr().err
    assert f"{newest}: {name} is damaged; going back to the checkpoint before it\n" in said
    assert "pretrain: going on from step 2 of 6\n" in said
    assert weights(damaged) == weights(undisturbed)


def test_every_flipped_byte_of_state_json_is_noticed(prepared: Make) -> None:
    recipe = prepared()
    run_killed(recipe, 3)
    path = recipe.directory / "pretrain/state/step-00000002"
    data = (path / "state.json").read_bytes()
    assert checkpoint.read_state(path)[1] == ""
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 4
        (path / "state.json").write_bytes(flipped)
        assert checkpoint.read_state(path)[1] == "state.json", place


def test_all_checkpoints_damaged_is_a_beginning_from_nothing(prepared: Make) -> None:
    undisturbed, damaged = prepared("one"), prepared("two")
    pretrain(undisturbed)
    run_killed(damaged, 5)
    for path in (damaged.directory / "pretrain/state").iterdir():
        (path / "state.json").write_text("null")
    pretrain(damaged)
    assert weights(damaged) == weights(undisturbed)
    assert len(records(damaged)) == len(records(undisturbed))


def test_so_many_checkpoints_stay_as_asked_and_leftovers_of_kills_do_not(prepared: Make) -> None:
    recipe = prepared(pretrain={"checkpoint_every": 1, "keep_checkpoints": 3})
    state = recipe.directory / "pretrain" / "state"
    for leftover in ("step-00000003.partial", "step-00000002.replaced", "step-00000001"):
        (state / leftover).mkdir(parents=True)
        (state / leftover / "model.safetensors").write_bytes(b"half")
    pretrain(recipe)
    assert sorted(path.name for path in state.iterdir()) == ["step-00000004", "step-00000005", "step-00000006"]


@pytest.mark.parametrize("section", [{}, {"num_experts": 4, "moe_intermediate_size": 24, "router_aux_loss_coef": 0.0}])
def test_the_micro_batch_changes_nothing_but_rounding(section: dict[str, Any], prepared: Make) -> None:
    found = []
    for micro_tokens in (64, 192, 256):
        # AdamW alone: Muon's orthogonalisation runs in bfloat16, in which rounding shows.
        settings = {"micro_tokens": micro_tokens, "optimizer": "adamw", "steps": 3, "max_grad_norm": 1e9}
        recipe = prepared(str(micro_tokens), pretrain=settings, model=section)
        pretrain(recipe)
        found.append([record["loss"] for record in records(recipe) if "loss" in record])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_changes_nothing_but_rounding(prepared: Make) -> None:
    found = []
    for checkpointing in (False, True):
        recipe = prepared(str(checkpointing), pretrain={"gradient_checkpointing": checkpointing})
        pretrain(recipe)
        found.append([record["loss"] for record in records(recipe) if "loss" in record])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_loss_falls(prepared: Make) -> None:
    recipe = prepared(pretrain=training(40, lr_max=5e-3))
    pretrain(recipe)
    losses = [record["loss"] for record in records(recipe) if "loss" in record]
    assert losses[-1] < losses[0] - 1.5
    bits = [record["valid_bpb_en"] for record in records(recipe) if "valid_bpb_en" in record]
    assert bits[-1] < 0.75 * bits[0]


def test_a_step_with_a_loss_that_is_no_number_changes_no_weight(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = prepared(pretrain={"steps": 1, "checkpoint_every": 1, "eval_every": 9})
    broken_at(monkeypatch, lambda step: step == 0)
    pretrain(recipe)
    assert "pretrain: step 0 skipped, loss nan" in capsys.readouterr().err
    from mini_chat.trainer.stage import load_tokenizer, new_model

    untrained = new_model(recipe, load_tokenizer(recipe.directory / "tokenizer"))
    trained = load_model(recipe.directory / "pretrain")
    for (name, before), (_, after) in zip(untrained.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(before, after), name


def test_training_goes_on_after_a_step_that_is_skipped(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared(pretrain={"max_bad_steps": 2})
    broken_at(monkeypatch, lambda step: step in {1, 3})
    pretrain(recipe)
    done = json.loads((recipe.directory / "pretrain/stage.json").read_text())
    assert done["steps"] == 6 and done["skipped_steps"] == 2
    losses = {record["step"]: record["loss"] for record in records(recipe) if "loss" in record}
    assert losses[2] is None and losses[4] is None and losses[6] < losses[1]


@pytest.mark.parametrize("step", [1, 3, 6])
def test_sigterm_saves_and_leaves_even_in_the_last_step(step: int, prepared: Make) -> None:
    undisturbed, stopped = prepared("one"), prepared("two")
    pretrain(undisturbed)
    calls = 0
    original = LanguageModelling.weight

    def weight(self: LanguageModelling, batch: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(LanguageModelling, "weight", weight)
        pretrain(stopped)
    assert str(caught.value) == (f"pretrain: stopped at step {step} of 6, saved; the same command goes on from here")
    assert (stopped.directory / f"pretrain/state/step-{step:08d}/state.json").is_file()
    assert not (stopped.directory / "pretrain/stage.json").exists()
    pretrain(stopped)
    assert weights(stopped) == weights(undisturbed)


def test_sigterm_in_the_last_validation_is_not_forgotten(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared(pretrain={"eval_every": 100})
    original = loop.evaluate

    def evaluate(*arguments: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.raises(Interrupted):
        pretrain(recipe)


@pytest.mark.parametrize("place", ["checkpoint", "model"])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    place: str, prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    undisturbed, recipe = prepared("one"), prepared("two")
    pretrain(undisturbed)
    original, saves = checkpoint.save_file, 0

    def full(*arguments: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 5:  # two files a checkpoint: the third one
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        original(*arguments)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
            if place == "checkpoint":
                patch.setattr(checkpoint, "save_file", full)
            else:
                error = OSError(errno.ENOSPC, "No space left on device")
                patch.setattr(
                    "mini_chat.model.SLMForCausalLM.save_pretrained", lambda *a, **k: (_ for _ in ()).throw(error)
                )
            pretrain(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and "free space" in str(caught.value)
    names = [path.name for path in sorted((recipe.directory / "pretrain/state").iterdir())]
    newest = recipe.directory / "pretrain" / "state" / names[-1]
    assert newest.name == ("step-00000004" if place == "checkpoint" else "step-00000006")
    assert checkpoint.read_state(newest)[1] == ""
    assert not (recipe.directory / "pretrain/model.partial").exists()
    pretrain(recipe)
    assert weights(recipe) == weights(undisturbed)


def test_samples_are_asked_for_as_often_as_the_recipe_says(prepared: Make, device: Device) -> None:
    from mini_chat.trainer.pretrain import pretrain as stage

    recipe = prepared(pretrain={"sample_every": 2})
    modes = []

    def sampler(model: Any) -> str:
        modes.append(model.training)
        return "an answer"

    stage(recipe, recipe.directory, device, sampler)
    assert modes == [False, False, False]
    assert [record["step"] for record in records(recipe) if "samples" in record] == [2, 4, 6]


def test_the_rate_is_of_the_last_steps() -> None:
    window = Window(size=2)
    for tokens, seconds in ((1000, 1.0), (10, 1.0), (20, 2.0)):
        window.add(tokens, seconds)
    assert window.rate == pytest.approx(30 / 3)


def test_no_rows_is_one_line(prepared: Make) -> None:
    recipe = prepared()
    from mini_chat.data.packing import PackedDocuments

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"there is no document to train on in "):
        patch.setattr(PackedDocuments, "__len__", lambda self: 0)
        pretrain(recipe)
