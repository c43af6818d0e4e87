"""`make bench`: the cost of watches, and their effect on other calls."""

import tempfile
import time
from pathlib import Path

from crowds import Crowd, await_reachable, cpu_seconds, crowd, latencies, memory, p99
from unit import Program, Unit

WATCHES = 10_000
CALLS = 5_000
CLIENTS = 5_000


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with Unit(Path(directory) / "idle" / "unit") as unit:
            _idle(unit)
        with Unit(Path(directory) / "change" / "unit") as unit:
            _change(unit)
        with Unit(Path(directory) / "flapping" / "unit") as unit:
            _flapping(unit)


def _idle(unit: Unit) -> None:
    unit.add_cell("cell0")
    server = unit.start_server()
    latencies(unit, 1000)
    without, before = p99(latencies(unit, CALLS)), memory(server)
    with crowd(unit, WATCHES, connections=100, cells=1000) as watches:
        opened = _seconds_until_open(watches, WATCHES)
        each = (memory(server) - before) / WATCHES / 1024
        with_them = p99(latencies(unit, CALLS))
        # Measure for 50 seconds. In that time each watch sends a keep-alive (after 45 seconds at most).
        busy = _busy(server, 50)
    print(f"{WATCHES} idle watches: opened in {opened:.1f} s, {each:.1f} KB each, {busy:.1%} of a processor")
    print(f"GetCellExport p99: {without:.2f} ms without them, {with_them:.2f} ms with: {with_them / without:.2f}")


def _change(unit: Unit) -> None:
    unit.start_server()
    with crowd(unit, 1000, connections=20, cells=1) as watches:
        _seconds_until_open(watches, 1000)
        taken = []
        for _ in range(5):
            began = time.monotonic()
            taken.append(_last_arrival(watches, unit.begin(cell="cell0").revision) - began)
            _last_arrival(watches, unit.cancel(cell="cell0").revision)
    print(f"a change reaches 1000 watches of a cell after {max(taken) * 1000:.0f} ms (the slowest of 5)")


def _last_arrival(watches: Crowd, newest: int) -> float:
    """Return the time at which the last of the 1000 watches received the revision `newest`."""

    def all_have_it(report: dict[str, int]) -> bool:
        return (report["newest"], report["at_newest"]) == (newest, 1000)

    return float(watches.wait_for(all_have_it, within=20)["last_at"])


def _flapping(unit: Unit) -> None:
    server = unit.start_server()
    with crowd(unit, CLIENTS, connections=CLIENTS, cells=100) as watches:
        _seconds_until_open(watches, CLIENTS)
        server.kill()
        watches.wait_for(lambda report: report["open"] == 0, within=60)
        began = time.monotonic()
        unit.start_server()
        await_reachable(unit)
        reached = time.monotonic() - began
        watches.wait_for(lambda report: report["open"] == CLIENTS, within=120)
    served = time.monotonic() - began
    print(f"{CLIENTS} clients that all lost their connection: all are served again after {served:.1f} s", end=" ")
    print(f"(the server itself was up after {reached:.1f} s)")


def _seconds_until_open(watches: Crowd, count: int) -> float:
    began = time.monotonic()
    watches.wait_for(lambda report: report["open"] == count, within=180)
    return time.monotonic() - began


def _busy(server: Program, seconds: float) -> float:
    """Return the share of one processor that the server takes during these seconds."""
    before, began = cpu_seconds(server), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(server) - before) / (time.monotonic() - began)


if __name__ == "__main__":
    main()
