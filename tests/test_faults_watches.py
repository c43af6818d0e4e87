"""Many watches at once: they cost little, and delay no other call."""

import time

import pytest

from canary import Unstalled
from crowds import cpu_seconds, crowd, files, latencies, memory, p99
from unit import Unit, eventually


@pytest.mark.fault("F21", "F25")
@pytest.mark.long
@pytest.mark.timeout(120)
def test_five_thousand_idle_watches_leave_the_server_to_others(unit: Unit) -> None:
    # The default keep-alive is five times as long, so here the watches send, and cost, five times as much. Through
    # `env` the server starts in a new interpreter: a fork of the zygote would have more modules in memory.
    server = unit.start_server("env", CELLEXPORT_WATCH_KEEPALIVE_SECONDS="9")
    with crowd(unit, 5000, connections=50, cells=100) as watches:
        watches.wait_for(lambda said: bool(said["open"] == 5000), within=90)
        unstalled = Unstalled()
        assert p99(latencies(unit, 1000)) * unstalled.share() < 50
        assert memory(server) < 200 * 1024**2, memory(server)
        assert files(server) < 300
        before, began = cpu_seconds(server), time.monotonic()
        latest = watches.wait_for(lambda said: time.monotonic() - began > 10, within=20)
        assert (cpu_seconds(server) - before) / (time.monotonic() - began) / 5 < 0.05
        # Nearly every watch has received a keep-alive after its first status.
        assert latest["messages"] > 1.9 * 5000
        assert (latest["open"], latest["failures"]) == (5000, 0)
    # The clients have exited, so the server must close the connections of their watches.
    eventually(lambda: files(server) < 40)
