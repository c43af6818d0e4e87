"""The server's metrics, besides those of calls: exports, watches, the store, the event log."""

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cellexport.program.metrics_server import new_registry
from server.exports.model import CellRecord, Export, Outcome, Phase
from server.ops.call_metrics import CallMetrics

_STATES = ("queued", "running", "stalled")
# SQLite answers reads from memory within microseconds; no operation takes longer than a second.
_STORE_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@final
class Metrics:
    """All of them, in a registry of their own. No label is anything that a caller chose."""

    def __init__(self) -> None:
        registry: CollectorRegistry = new_registry()
        self.registry = registry
        self.calls = CallMetrics(registry)
        self.watches = Gauge("cellexport_watches", "Streams that watch a cell.", registry=registry)
        self._store = Histogram(
            "cellexport_store_seconds",
            "How long the store took, by operation and how it ended.",
            ("operation", "outcome"),
            registry=registry,
            buckets=_STORE_BUCKETS,
        )
        self.events_lost = Counter(
            "cellexport_event_log_lost", "Events that could not be written to the event log.", registry=registry
        )
        self._exports = Gauge(
            "cellexport_exports", "Exports under way, as the store last told them.", ("state",), registry=registry
        )
        self._finished = Counter(
            "cellexport_exports_finished",
            "Exports that ended, and why where they left no snapshot.",
            ("result", "reason"),
            registry=registry,
        )
        # To find a child by its labels costs more than to count.
        self._store_children: dict[tuple[str, str], Callable[[float], None]] = {}
        self.count_exports(())

    def time_store(self, operation: str, outcome: str, seconds: float) -> None:
        """Take in how long the store took for an operation, and how that ended."""
        observe = self._store_children.get((operation, outcome))
        if observe is None:
            observe = self._store.labels(operation, outcome).observe
            self._store_children[operation, outcome] = observe
        observe(seconds)

    def count_exports(self, records: Sequence[CellRecord]) -> None:
        """Take in which exports are under way."""
        states = Tally(_state(record.export) for record in records if record.export is not None)
        for state in _STATES:
            self._exports.labels(state).set(states[state])

    def count_end(self, outcome: Outcome) -> None:
        """Take in that an export has ended."""
        self._finished.labels(outcome.result, outcome.reason or "").inc()


def _state(export: Export) -> str:
    if export.phase is Phase.QUEUED:
        return "queued"
    return "stalled" if export.stalled else "running"
