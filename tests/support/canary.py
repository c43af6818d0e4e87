"""A canary: a thread that measures how much the machine stalls while a test runs.

A promise such as "within two seconds" is about the programs, not about the machine that runs the tests. Tests assert an
upper bound on `steady()`, a clock that stops while the canary is kept from running; the bound is the number in the
promise. They assert a lower bound on `time.monotonic()`, without any allowance.
"""

import threading
import time
from functools import cache

# The canary sleeps for _PAUSE seconds, then computes for _BURST seconds, over and over. The burst is longer than a
# scheduler's time slice, so that the canary competes for the processor like the programs under test. The canary takes
# about 3 % of one processor.
_PAUSE = 0.12
_BURST = 0.004


class Canary:
    """A thread that alternately sleeps and works, and adds up how much longer both took than on an idle machine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stalled = 0.0
        self._cycle_began = time.monotonic()
        threading.Thread(target=self._run, name="canary", daemon=True).start()

    def stalled(self) -> float:
        """Return for how many seconds the machine has stalled so far, including a stall that still lasts."""
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
            # The share of a processor that the canary got during its burst. Programs that computed meanwhile got no
            # more.
            share = min(1.0, worked / (ended - woke))
            with self._lock:
                self._stalled += min(ended - began, late + (ended - began) * (1 - share))
                self._cycle_began = ended


class Unstalled:
    """The share of a period in which the machine has not stalled: 1.0 on an idle machine.

    Multiply durations that are too short for `steady()` by it, such as those of single calls.
    """

    def __init__(self) -> None:
        self._began, self._steadily_began = time.monotonic(), steady()

    def share(self) -> float:
        """Return the share of the period from the object's creation until now."""
        return (steady() - self._steadily_began) / (time.monotonic() - self._began)


@cache
def _canary() -> Canary:
    return Canary()


def steady() -> float:
    """Return the seconds on a clock that stops while the machine stalls. Only differences have a meaning."""
    return time.monotonic() - _canary().stalled()
