"""A canary: a thread that measures how much the machine stalls while a test runs.

A promise such as "within two seconds" is about the programs, not about the machine that the tests happen to run on.
So an upper bound is asserted on `steady()`, a clock that stands still while the canary is kept from running, and the
bound is the promise's own number. A lower bound is asserted on `time.monotonic()`, without any allowance.
"""

import threading
import time
from functools import cache

# In seconds. The burst is longer than a scheduler's time slice, so that the canary meets the same competition as the
# programs under test. It takes about 3 % of one processor.
_PAUSE = 0.12
_BURST = 0.004


class Canary:
    """Sleeps and works in turns, and counts the time by which either took longer than on an idle machine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stalled = 0.0
        self._cycle_began = time.monotonic()
        threading.Thread(target=self._run, name="canary", daemon=True).start()

    def stalled(self) -> float:
        """Return for how many seconds the machine has stalled so far, a stall that still lasts included."""
        with self._lock:
            running = time.monotonic() - self._cycle_began
            return self._stalled + max(0.0, running - _PAUSE - 2 * _BURST)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            began = time.monotonic()
            pause.wait(_PAUSE)
            woke, worked = time.monotonic(), time.thread_time()
            while time.thread_time() - worked < _BURST:
                pass
            ended, worked = time.monotonic(), time.thread_time() - worked
            late = max(0.0, woke - began - _PAUSE)
            # Of a second, a busy program got only this share of a processor.
            share = min(1.0, worked / (ended - woke))
            with self._lock:
                self._stalled += min(ended - began, late + (ended - began) * (1 - share))
                self._cycle_began = ended


@cache
def _canary() -> Canary:
    return Canary()


def steady() -> float:
    """Return a time in seconds that stands still while the machine stalls. Only differences have a meaning."""
    return time.monotonic() - _canary().stalled()
