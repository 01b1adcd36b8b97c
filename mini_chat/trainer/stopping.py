"""A request to stop: the step at work may end if it does so soon; longer work is given up, as it can be repeated."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 5.0
"""What a step or a validation may still take after a request."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the run to end; a checkpoint was written and the same command goes on from it."""


class GivenUp(BaseException):
    """The work at hand took too long after a request to stop; nothing of it counts."""


class StopRequests:
    """Turns SIGTERM and the first SIGINT into a request that the loop sees; a second one is a KeyboardInterrupt.

    Args:
        patient: never give work up, nor leave at a second signal: where several processes work together they must all
            do the same.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked = self.late = self.may_raise = False
        self.patient = patient
        self.previous: dict[int, Any] = {}
        self.timer: threading.Timer | None = None

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals stay as they are
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        if self.timer:
            self.timer.cancel()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.late:
            if self.may_raise:
                raise GivenUp
            return
        if self.patient:  # Ctrl-C reaches each process twice: from the terminal, and from torchrun
            self.asked = True
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.timer = threading.Timer(GRACE_SECONDS, self._insist)
        self.timer.daemon = True
        self.timer.start()

    def _insist(self) -> None:
        self.late = True
        _thread.interrupt_main(signal.SIGTERM)

    @contextmanager
    def given_up_if_late(self) -> Iterator[None]:
        """Work that may be cut off anywhere: it changes nothing that a checkpoint holds.

        Raises:
            GivenUp: within the block, GRACE_SECONDS after a request; or where the work fails after one, since the same
                signal may have ended a process that it needs: a compiler, or another that trains.
        """
        try:
            self.may_raise = True
            if self.late:
                raise GivenUp
            yield
        except Exception as error:
            if self.asked:
                raise GivenUp from error
            raise
        finally:
            self.may_raise = False
