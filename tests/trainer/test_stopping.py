"""A request to stop: short work ends, long work is given up, and what is saved goes on to the same bits."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from runs import Make, pretrain, records, weights

from mini_chat.trainer import stopping
from mini_chat.trainer.language_modelling import LanguageModelling
from mini_chat.trainer.stopping import GivenUp, Interrupted, StopRequests


def work(seconds: float) -> None:
    """Something that takes so long, in pieces, as training does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def after(seconds: float, number: int) -> None:
    """Send a signal to this process."""
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_short_work_ends_and_the_request_is_seen_after_it(number: int) -> None:
    with StopRequests() as stop:
        with stop.given_up_if_late():
            signal.raise_signal(number)
        assert stop.asked


def test_long_work_is_given_up_soon_after_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.1)
    with StopRequests() as stop:
        began = time.monotonic()
        after(0.1, signal.SIGTERM)
        with pytest.raises(GivenUp), stop.given_up_if_late():
            work(20)
        assert time.monotonic() - began < 5
        with pytest.raises(GivenUp), stop.given_up_if_late():
            pytest.fail("nor is other work begun")


def test_work_that_fails_after_a_request_is_given_up_and_before_one_it_fails() -> None:
    """Ctrl-C ends the compiler that a first step waits for."""
    with StopRequests() as stop:
        with pytest.raises(ZeroDivisionError), stop.given_up_if_late():
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(GivenUp), stop.given_up_if_late():
            raise ZeroDivisionError


def test_work_that_may_not_be_given_up_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.05)
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGTERM)
        work(0.3)
        assert stop.asked and stop.late


def test_a_second_signal_leaves_at_once() -> None:
    with StopRequests(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_one_of_several_processes_neither_gives_up_nor_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.05)
    with StopRequests(patient=True) as stop:
        with stop.given_up_if_late():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            work(0.2)
        assert stop.asked


def test_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_step_that_takes_minutes_is_given_up_and_its_gradients_count_for_nothing(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.1)
    undisturbed, stopped = prepared("one"), prepared("two")
    pretrain(undisturbed)
    calls, original = 0, LanguageModelling.loss

    def loss(self: LanguageModelling, model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:  # the second half of step 3
            signal.raise_signal(signal.SIGTERM)
            work(60)
        return original(self, model, batch)

    began = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(LanguageModelling, "loss", loss)
        pretrain(stopped)
    assert time.monotonic() - began < 30
    assert str(caught.value) == "pretrain: stopped at step 3 of 6, saved; the same command goes on from here"
    assert (stopped.directory / "pretrain/state/step-00000003/state.json").is_file()
    pretrain(stopped)
    assert weights(stopped) == weights(undisturbed)


def test_a_validation_that_takes_minutes_is_given_up_and_made_again(
    prepared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.1)
    recipe = prepared()  # validations at 3 and 6, no checkpoint is due at 3

    def validate(self: LanguageModelling, model: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        work(60)
        return {}

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 3 of 6, saved"):
        patch.setattr(LanguageModelling, "validate", validate)
        pretrain(recipe)
    pretrain(recipe)
    assert [record["step"] for record in records(recipe) if "valid_bpb_en" in record] == [3, 6]
