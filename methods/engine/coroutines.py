"""Several stages in one process, of which one works at a time: an update each, in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence


class Coroutine:
    """A stage that runs in a thread of its own, between `resume` and `suspend`."""

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

    def resume(self) -> None:
        """Let the stage go on until it suspends itself or ends; raises what ended it."""
        if not self._thread.is_alive():
            self._thread.start()
        self._mine.release()
        self._over.acquire()
        if self._error is not None:
            raise self._error

    def suspend(self, done: int) -> None:
        """From within the stage, before update `done` + 1: let others have their turn."""
        self.done, began = done, time.perf_counter()
        self._over.release()
        self._mine.acquire()
        self.waited += time.perf_counter() - began


def interleave(coroutines: Sequence[Coroutine]) -> None:
    """Until all have ended: who has done the fewest updates is next, the first of equals.

    So stages that went on from different checkpoints draw level and stay so, and all ranks choose
    alike. What depends on the thread or on global state (random numbers, gradient mode, threads of
    operations) is set within a turn by who has it.
    """
    while waiting := [coroutine for coroutine in coroutines if not coroutine.ended]:
        min(waiting, key=lambda coroutine: coroutine.done).resume()
