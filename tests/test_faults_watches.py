"""Many watches at once: they cost little, and nobody else notices."""

import time

import pytest

from crowds import cpu_seconds, crowd, files, latencies, memory, p99
from unit import Unit, eventually


@pytest.mark.fault("F21", "F25")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_five_thousand_idle_watches_leave_the_server_to_others(unit: Unit) -> None:
    # A fifth of what it is by default: five times as much is said, and so five times as much done.
    server = unit.start_server(CELLEXPORT_WATCH_KEEPALIVE_SECONDS="9")
    with crowd(unit, 5000, connections=50, cells=100) as watches:
        watches.wait_for(lambda said: bool(said["open"] == 5000), within=90)
        assert p99(latencies(unit, 1000)) < 50
        assert memory(server) < 200 * 1024**2, memory(server)
        assert files(server) < 300
        before, began = cpu_seconds(server), time.monotonic()
        latest = watches.wait_for(lambda said: time.monotonic() - began > 10, within=20)
        assert (cpu_seconds(server) - before) / (time.monotonic() - began) / 5 < 0.05
        # Nearly each has said meanwhile that nothing has changed.
        assert latest["messages"] > 1.9 * 5000
        assert (latest["open"], latest["failures"]) == (5000, 0)
    # When they go, nothing of them stays.
    eventually(lambda: files(server) < 40)
