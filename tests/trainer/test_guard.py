"""The guard against broken steps: what it skips, when training goes back, and that no ordinary run meets it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import Make, broken_at, pretrain, records, run_killed, weights
from tiny import training

from mini_chat.config import Pretrain
from mini_chat.data.packing import PackedDocuments
from mini_chat.errors import UserError
from mini_chat.trainer.guard import Guard
from mini_chat.trainer.language_modelling import LanguageModelling

NORMS = st.floats(1e-6, 1e6)


def guard(norms: list[float], **changes: Any) -> Guard:
    return Guard(Pretrain.model_validate({"spike_factor": 10, "spike_window": 5} | changes), norms)


@pytest.mark.parametrize("loss, norm", [(float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 1.0), (1.0, -1e999)])
def test_what_is_no_number_is_a_fault_whatever_the_history(loss: float, norm: float) -> None:
    assert guard([]).fault(loss, norm) and guard([1.0] * 5, spike_factor=0).fault(loss, norm)


@given(st.lists(NORMS, max_size=4), NORMS)
def test_no_norm_is_too_large_before_the_window_is_full(norms: list[float], norm: float) -> None:
    assert guard(norms).fault(1.0, norm) == ""


@given(st.lists(NORMS, min_size=5, max_size=5), st.floats(0, 9.99))
def test_a_norm_near_the_median_is_no_fault_and_one_far_above_it_is(norms: list[float], times: float) -> None:
    median = sorted(norms)[2]
    assert guard(norms).fault(1.0, times * median) == ""
    assert guard(norms).fault(1.0, 10.01 * median)
    assert guard(norms, spike_factor=0).fault(1.0, 1e9 * median) == "", "off"


def test_the_fault_names_the_numbers() -> None:
    told = guard([1.0, 2.0, 3.0, 2.0, 2.0]).fault(1.0, 50.0)
    assert told == "gradient norm 50 is over 10 times 2, the median of the last 5"


def test_the_median_follows_a_norm_that_rises_slowly() -> None:
    watch = guard([1.0] * 5)
    for step in range(100):
        norm = 1.2**step
        assert watch.fault(1.0, norm) == ""
        watch.accept(norm)
    assert len(watch.norms) == 5


def test_an_ordinary_run_skips_nothing_and_the_guard_changes_no_bit(prepared: Make) -> None:
    runs = [prepared(str(factor), pretrain=training(30, spike_factor=factor, spike_window=10)) for factor in (25, 0)]
    for recipe in runs:
        pretrain(recipe)
    assert weights(runs[0]) == weights(runs[1])
    assert {record["skipped_steps"] for record in records(runs[0]) if "loss" in record} == {0}


def test_a_spike_is_skipped_counted_and_no_part_of_the_history(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = prepared(pretrain=training(12, spike_window=4, spike_factor=10))
    broken_at(monkeypatch, lambda step: step in {7, 8}, 1e4)
    pretrain(recipe)
    said = capsys.readouterr().err
    assert said.count("skipped, gradient norm ") == 2 and "pretrain: step 7 skipped, gradient norm " in said
    counts = {record["step"]: record["skipped_steps"] for record in records(recipe) if "loss" in record}
    assert counts[7] == 0 and counts[8] == 1 and counts[9] == counts[12] == 2


def breaks_for_batches(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> list[int]:
    """The loss of these batches (of 4 rows) is no number; returns the list of the batches that are taken."""
    taken: list[int] = []
    batch, loss = PackedDocuments.batch, LanguageModelling.loss

    def noted(self: PackedDocuments, first: int, count: int) -> Any:
        taken.append(first // 4)
        return batch(self, first, count)

    def broken(self: LanguageModelling, model: Any, micro: Any) -> Any:
        value, extra = loss(self, model, micro)
        return (value * float("nan") if taken[-1] in bad else value), extra

    monkeypatch.setattr(PackedDocuments, "batch", noted)
    monkeypatch.setattr(LanguageModelling, "loss", broken)
    return taken


# Checkpoints at 2, 4, 6, 8, 10; three bad batches in a row go back.
BACK = training(10, max_bad_steps=3, checkpoint_every=2)


def test_several_in_a_row_go_back_and_leave_the_batches_out(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = prepared(pretrain=BACK)
    taken = breaks_for_batches(monkeypatch, {5, 6, 7})
    pretrain(recipe)
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, *range(8, 14)], "step 4 takes batch 8, and no batch comes twice"
    said = capsys.readouterr().err
    assert (
        "pretrain: 3 steps in a row were skipped (last: step 7); going back to the last good checkpoint, without the "
        "batches since (1 of 3)\npretrain: going on from step 4 of 10\n"
    ) in said
    found = records(recipe)
    assert {"step": 4, "went_back_from": 7, "skipped_steps": 3, "rollbacks": 1} in found
    steps = [record["step"] for record in found if "loss" in record]
    assert steps == list(range(1, 11)), "what was given up is no longer in the metrics"


@pytest.mark.parametrize("step", [5, 7, 10, 13])
def test_a_run_killed_amid_going_back_ends_in_the_same_bits(step: int, prepared: Make) -> None:
    bad = {5, 6, 7, 8, 9, 10}  # twice in a row: back to step 4, where batch 8 is the next, and back again
    undisturbed, killed = prepared("one", pretrain=BACK), prepared("two", pretrain=BACK)
    with pytest.MonkeyPatch.context() as patch:
        breaks_for_batches(patch, bad)
        pretrain(undisturbed)
    with pytest.MonkeyPatch.context() as patch:
        breaks_for_batches(patch, bad)
        run_killed(killed, step)
        pretrain(killed)
    assert weights(killed) == weights(undisturbed)


def test_a_run_stopped_amid_bad_steps_goes_back_as_far_as_an_undisturbed_one(prepared: Make) -> None:
    """What SIGTERM saves between two scheduled checkpoints is nothing to go back to."""
    undisturbed, stopped = prepared("one", pretrain=BACK), prepared("two", pretrain=BACK)
    with pytest.MonkeyPatch.context() as patch:
        breaks_for_batches(patch, {5, 6, 7})
        pretrain(undisturbed)
    often = prepared("two", pretrain=BACK | {"checkpoint_minutes": 1e-9, "keep_checkpoints": 1})
    with pytest.MonkeyPatch.context() as patch:
        breaks_for_batches(patch, {5, 6, 7})
        run_killed(often, 7)  # a checkpoint after every step, of which one is kept, and the good one
        names = sorted(path.name for path in (stopped.directory / "pretrain/state").iterdir())
        assert names == ["step-00000004", "step-00000007"]
        pretrain(stopped)
    assert weights(stopped) == weights(undisturbed)


def test_before_the_first_scheduled_checkpoint_any_whole_one_serves(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = breaks_for_batches(monkeypatch, {5, 6, 7})
    seldom = {"checkpoint_every": 1000, "checkpoint_minutes": 1e-9, "keep_checkpoints": 9}  # after every step, that is
    pretrain(prepared(pretrain=BACK | seldom))
    said = capsys.readouterr().err
    assert "3 steps in a row were skipped (last: step 7); going back to the last good checkpoint" in said
    assert "pretrain: going on from step 5 of 10\n" in said
    assert taken[7:9] == [7, 8]


def test_batches_that_stay_broken_end_in_one_line(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prepared(pretrain=BACK | {"max_rollbacks": 2})
    breaks_for_batches(monkeypatch, set(range(5, 1000)))
    with pytest.raises(UserError) as caught:
        pretrain(recipe)
    assert str(caught.value) == (
        "pretrain: 3 steps in a row were skipped (last: step 6) after 2 times back to a checkpoint; lower lr_max or "
        "muon_lr_max, or raise spike_factor if such gradients are right; the last good checkpoint is in "
        f"{recipe.directory / 'pretrain/state'}"
    )


def test_broken_from_the_beginning_is_one_line(prepared: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_for_batches(monkeypatch, set(range(1000)))
    with pytest.raises(UserError) as caught:
        pretrain(prepared(pretrain=BACK))
    assert str(caught.value) == (
        "pretrain: 3 steps in a row were skipped (last: step 2), and there is no whole checkpoint from before them; "
        "lower lr_max or muon_lr_max, or raise spike_factor if such gradients are right"
    )


def test_going_back_over_a_damaged_checkpoint_takes_the_one_before(
    prepared: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = prepared(pretrain=BACK | {"keep_checkpoints": 3})
    taken = breaks_for_batches(monkeypatch, {5, 6, 7})
    original = Guard.fault

    def fault(self: Guard, loss: float, norm: float) -> str:
        if taken[-1] == 7:
            path = recipe.directory / "pretrain/state/step-00000004/model.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
        return original(self, loss, norm)

    monkeypatch.setattr(Guard, "fault", fault)
    pretrain(recipe)
    said = capsys.readouterr().err
    assert "step-00000004: model.safetensors is damaged; going back to the checkpoint before it\n" in said
    assert "pretrain: going on from step 2 of 10\n" in said
    assert taken[8] == 8
