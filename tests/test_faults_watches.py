"""Many watches at once: they cost little, and other calls stay fast."""

import time

import pytest

from crowds import cpu_seconds, crowd, files, latencies, memory, p99
from unit import Unit, eventually


@pytest.mark.fault("F21", "F25")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_five_thousand_idle_watches_leave_the_server_to_others(unit: Unit) -> None:
    # `env` gives the server an interpreter of its own, with no other program's modules in its memory. The interval is
    # a fifth of the default: the server sends five times the messages, and uses five times the processor.
    server = unit.start_server("env", CELLEXPORT_WATCH_KEEPALIVE_SECONDS="9")
    with crowd(unit, 5000, connections=50, cells=100) as watches:
        watches.wait_for(lambda said: bool(said["open"] == 5000), within=90)
        assert p99(latencies(unit, 1000)) < 50
        assert memory(server) < 200 * 1024**2, memory(server)
        assert files(server) < 300
        before, began = cpu_seconds(server), time.monotonic()
        latest = watches.wait_for(lambda said: time.monotonic() - began > 10, within=20)
        assert (cpu_seconds(server) - before) / (time.monotonic() - began) / 5 < 0.05
        # Nearly each watch has received a keepalive by now.
        assert latest["messages"] > 1.9 * 5000
        assert (latest["open"], latest["failures"]) == (5000, 0)
    # Closed watches leave no file open.
    eventually(lambda: files(server) < 40)
