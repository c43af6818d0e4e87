"""The composition root: builds the parts of the server in the order of its lines, and closes them in reverse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from cellexport.environment import SettingError
from cellexport.program import traces
from cellexport.v1 import cell_export_pb2, exporter_pb2
from server import tasks
from server.auth.opening import build_judge
from server.cells import CellDirectory
from server.exporter.snapshot_directory import SnapshotDirectory
from server.exports.claims import Claims
from server.exports.clock import now_ms
from server.exports.events import Events, NoEvents
from server.exports.expiry import Expiry
from server.exports.lifecycle import ExportLifecycle
from server.exports.repository import Repository
from server.exports.store import Store
from server.exports.store_pulse import StorePulse
from server.exports.watches import Watches
from server.ops.call_observer import CallObserver
from server.ops.drain import Drain
from server.ops.event_log import EventLog
from server.ops.health import SERVICE as HEALTH_SERVICE
from server.ops.health import Health
from server.ops.metrics import Metrics, NoMetrics
from server.ops.reflection import Reflection
from server.rpc.admission import Admission
from server.rpc.guard import Guard
from server.rpc.in_flight import CallsInFlight
from server.rpc.listener import MOST_CALLS, taken
from server.rpc.services import CellExportService, ExporterService
from server.settings import Settings
from server.stores.measured import MeasuredStore
from server.stores.opening import open_store

_SERVICES = (
    cell_export_pb2.DESCRIPTOR.services_by_name["CellExportService"],
    exporter_pb2.DESCRIPTOR.services_by_name["ExporterService"],
)


@asynccontextmanager
async def serving(
    settings: Settings, *, clock: Callable[[], int] = now_ms, drained: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """Serve while the context is open. Yield the address that the server listens on.

    Args:
        clock: milliseconds since 1970.
        drained: called when the last call has ended, before the other parts are closed.

    Raises:
        StoreError: if the store can't be opened.
        ListenError: if the server can't listen on an address.
        SettingError: if the event log can't be written.
    """
    async with AsyncExitStack() as stack:
        metrics = _open_metrics(settings, stack)
        spans = traces.open_spans("cellexport-server", on=settings.traces)
        if spans is not None:
            stack.push_async_callback(asyncio.to_thread, spans.close)
        store: Store = await open_store(settings.store, clock)
        stack.push_async_callback(store.close)
        if settings.metrics is not None:
            store = MeasuredStore(store, metrics.time_store)
        events = await _open_events(settings, metrics)
        stack.push_async_callback(events.close)
        cells = CellDirectory(settings.unit_dir / "cells")
        repository = Repository(store, clock)
        claims = Claims(store, repository)
        snapshots = SnapshotDirectory(settings.unit_dir / "snapshots")
        lifecycle = ExportLifecycle(
            store=store,
            repository=repository,
            snapshots=snapshots,
            log=events,
            queue_limit=settings.queue_limit,
            clock=clock,
            on_end=metrics.count_end,
        )
        calls = CallsInFlight()
        guard = Guard(Admission(judge=build_judge(settings.tokens, settings.urls, clock), cells=cells), calls, clock)
        pulse = StorePulse()
        expiry = Expiry(
            store=store,
            lifecycle=lifecycle,
            pulse=pulse,
            lease_seconds=settings.lease_seconds,
            queue_seconds=settings.queue_seconds,
            clock=clock,
            on_scan=metrics.count_exports,
        )
        repository.on_refused_write(expiry.restart)
        watches = Watches(store, repository, keepalive_seconds=settings.watch_keepalive_seconds)
        cell_exports = CellExportService(
            repository=repository, lifecycle=lifecycle, watches=watches, log=events, clock=clock
        )
        metrics.follow_watches(lambda: cell_exports.watch_limit.open)
        exporters = ExporterService(
            lifecycle, claims, cells, unit_url=settings.urls.unit, lease_seconds=settings.lease_seconds
        )
        observer = CallObserver(spans, metrics.calls)
        health = Health(pulse, [service.full_name for service in _SERVICES])
        reflection = Reflection((*_SERVICES, HEALTH_SERVICE))
        server = grpc.aio.server(
            interceptors=[observer], options=settings.listener.options(), maximum_concurrent_rpcs=MOST_CALLS
        )
        methods = (cell_exports.methods, exporters.methods)
        server.add_generic_rpc_handlers(tuple(map(guard.handlers, _SERVICES, methods)))
        # Health and reflection need no token, and reveal nothing about cells.
        add_HealthServicer_to_server(health, server)
        if settings.reflection:
            server.add_generic_rpc_handlers(reflection.handlers())
        address = settings.listener.listen(server)
        await server.start()
        for task in (expiry.run(), health.run()):
            stack.push_async_callback(tasks.cancel, asyncio.create_task(task))
        closing = (watches.close, claims.close, health.close, reflection.close)
        drain = Drain(server, health, calls, seconds=settings.drain_seconds, closing=closing)
        stack.callback(drained)
        stack.push_async_callback(drain.run)
        yield address


def _open_metrics(settings: Settings, stack: AsyncExitStack) -> Metrics:
    address = settings.metrics
    if address is None:
        return NoMetrics()
    # Imported only when needed: the Prometheus library takes 5 MB of memory.
    from cellexport.program.metrics_server import MetricsServer
    from server.ops.prometheus_metrics import PrometheusMetrics

    metrics = PrometheusMetrics()
    try:
        serving = MetricsServer.open(metrics.registry, address)
    except OSError as error:
        raise taken("CELLEXPORT_GRPC_METRICS_LISTEN", address) from error
    stack.callback(serving.close)
    return metrics


async def _open_events(settings: Settings, metrics: Metrics) -> Events:
    if settings.event_log is None:
        return NoEvents()
    try:
        return await EventLog.open(settings.event_log, lost=metrics.count_lost_events)
    except OSError as error:
        why = f"{settings.event_log} can't be written ({error.strerror})"
        raise SettingError(f"CELLEXPORT_EVENT_LOG: {why}. Set another file, or off.") from error
