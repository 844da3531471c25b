"""Several stages in one process, of which one works at a time: an update each, in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence


class Seat:
    """One stage's place among those that take turns."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.waited = 0.0
        """Seconds that others had since this stage began."""
        self.done = -1  # updates; -1 before the first turn
        self.ended = False
        self._mine, self._over = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(body,), daemon=True)
        self._error: BaseException | None = None

    def _work(self, body: Callable[[], None]) -> None:
        self._mine.acquire()
        try:
            body()
        except BaseException as error:  # raised where the turns are given
            self._error = error
        self.ended = True
        self._over.release()

    def have(self) -> None:
        """Let this stage go on until it yields or ends; raises what ended it."""
        if not self._thread.is_alive():
            self._thread.start()
        self._mine.release()
        self._over.acquire()
        if self._error is not None:
            raise self._error

    def give(self, done: int) -> None:
        """From within the stage, before update `done` + 1: let others have their turn."""
        self.done, began = done, time.perf_counter()
        self._over.release()
        self._mine.acquire()
        self.waited += time.perf_counter() - began


def take_turns(seats: Sequence[Seat]) -> None:
    """Until all have ended: who has done the fewest updates is next, the first of equals.

    So stages that went on from different checkpoints draw level and stay so, and all ranks choose
    alike. What depends on the thread or on global state (random numbers, gradient mode, threads of
    operations) is set within a turn by who has it.
    """
    while waiting := [seat for seat in seats if not seat.ended]:
        min(waiting, key=lambda seat: seat.done).have()
