"""The server's metrics for Prometheus. Imported only where metrics are on: the library takes 5 MB of memory."""

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cellexport.program.metrics_server import new_registry
from server.exports.model import CellRecord, Export, Outcome, Phase
from server.ops.prometheus_call_metrics import PrometheusCallMetrics

_STATES = ("queued", "running", "stalled")
# The buckets for the duration of store operations, in seconds. SQLite answers reads from memory within microseconds; no
# operation takes longer than a second.
_STORE_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@final
class PrometheusMetrics:
    """All metrics, in a registry of their own. No label holds a value that a caller chose."""

    def __init__(self) -> None:
        registry: CollectorRegistry = new_registry()
        self.registry = registry
        self.calls = PrometheusCallMetrics(registry)
        self._watches = Gauge("cellexport_watches", "Open watches.", registry=registry)
        self._store = Histogram(
            "cellexport_store_seconds",
            "Duration of operations of the store, by operation and outcome.",
            ("operation", "outcome"),
            registry=registry,
            buckets=_STORE_BUCKETS,
        )
        self._events_lost = Counter(
            "cellexport_event_log_lost", "Events that could not be written to the event log.", registry=registry
        )
        self._exports = Gauge(
            "cellexport_exports", "Exports in progress at the last scan of the store.", ("state",), registry=registry
        )
        self._finished = Counter(
            "cellexport_exports_finished",
            "Exports that ended, by result, and by reason where they left no snapshot.",
            ("result", "reason"),
            registry=registry,
        )
        # The counting functions by operation and outcome: finding one by its labels each time costs more than counting.
        self._store_children: dict[tuple[str, str], Callable[[float], None]] = {}
        self.count_exports(())

    def time_store(self, operation: str, outcome: str, seconds: float) -> None:
        observe = self._store_children.get((operation, outcome))
        if observe is None:
            observe = self._store.labels(operation, outcome).observe
            self._store_children[operation, outcome] = observe
        observe(seconds)

    def count_exports(self, records: Sequence[CellRecord]) -> None:
        states = Tally(_state(record.export) for record in records if record.export is not None)
        for state in _STATES:
            self._exports.labels(state).set(states[state])

    def count_end(self, outcome: Outcome) -> None:
        self._finished.labels(outcome.result, outcome.reason or "").inc()

    def count_lost_events(self, number: int) -> None:
        self._events_lost.inc(number)

    def follow_watches(self, count: Callable[[], float]) -> None:
        self._watches.set_function(count)


def _state(export: Export) -> str:
    if export.phase is Phase.QUEUED:
        return "queued"
    return "stalled" if export.stalled else "running"
