"""Many watches at once: they cost little, and delay no other call."""

import time

import pytest

from crowds import cpu_seconds, crowd, files, latencies, memory, p99
from unit import Unit, eventually


@pytest.mark.fault("F21", "F25")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_five_thousand_idle_watches_leave_the_server_to_others(unit: Unit) -> None:
    # A fifth of the default keep-alive, so the watches send, and cost, five times as much as by default.
    # `env` gives the server an interpreter of its own: a fork of the tests' interpreter holds more modules in memory.
    server = unit.start_server("env", CELLEXPORT_WATCH_KEEPALIVE_SECONDS="9")
    with crowd(unit, 5000, connections=50, cells=100) as watches:
        watches.wait_for(lambda said: bool(said["open"] == 5000), within=90)
        assert p99(latencies(unit, 1000)) < 50
        assert memory(server) < 200 * 1024**2, memory(server)
        assert files(server) < 300
        before, began = cpu_seconds(server), time.monotonic()
        latest = watches.wait_for(lambda said: time.monotonic() - began > 10, within=20)
        assert (cpu_seconds(server) - before) / (time.monotonic() - began) / 5 < 0.05
        # Nearly every watch has sent a keep-alive after its first status.
        assert latest["messages"] > 1.9 * 5000
        assert (latest["open"], latest["failures"]) == (5000, 0)
    # The server closes the connections of the ended watches.
    eventually(lambda: files(server) < 40)
