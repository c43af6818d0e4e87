"""Traces: one trace goes through the gateway and the server. Spans are sent only if traces are turned on."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, HandExporter, Unit, eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"


@dataclass
class Collector:
    """A collector for OpenTelemetry traces that keeps the export requests it receives."""

    port: int = 0
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "CELLEXPORT_TRACES": "on",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def spans(self, service: str) -> list[Span]:
        """Return the spans that the program with this service name has sent."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            if any(a.key == "service.name" and a.value.string_value == service for a in resource.resource.attributes)
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def span(self, service: str, key: str) -> Span:
        """Wait for the span that this program sent about the call with this request key, and return it."""

        def matching_span() -> Span | None:
            found = (span for span in self.spans(service) if attributes(span).get("cellexport.request_key") == key)
            return next(found, None)

        return eventually(matching_span)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    def export(request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        collector.requests.append(request)
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector
    server.stop(None)


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_one_trace_goes_through_both_programs_and_holds_no_secret(unit: Unit) -> None:
    with collecting() as collector:
        unit.settings |= collector.settings
        server, gateway = unit.start_server(), unit.start_gateway()

        headers = {"traceparent": TRACEPARENT, "tracestate": "a=b", "X-Personium-RequestKey": "good"}
        path = "/demo/__export?p_cookie_peer=canary-query"
        assert unit.http(path=path, headers=headers).status == 200
        unit.http(path="/nowhere/__export", headers=headers | {"X-Personium-RequestKey": "unknown"})

        web, call = collector.span("cellexport-gateway", "good"), collector.span("cellexport-server", "good")
        assert (web.trace_id.hex(), web.parent_span_id.hex(), web.trace_state) == (TRACE_ID, CALLER, "a=b")
        assert (call.trace_id, call.parent_span_id) == (web.trace_id, web.span_id)

        assert web.name == "GET /<cell>/__export"
        assert call.name == "cellexport.v1.CellExportService/GetCellExport"
        assert web.kind == call.kind == Span.SPAN_KIND_SERVER

        assert attributes(web) == {
            "url.scheme": "http",
            "http.request.method": "GET",
            "http.route": "/<cell>/__export",
            "http.response.status_code": 200,
            "cellexport.request_key": "good",
        }
        assert attributes(call) == {
            "rpc.system": "grpc",
            "rpc.service": "cellexport.v1.CellExportService",
            "rpc.method": "GetCellExport",
            "rpc.grpc.status_code": 0,
            "cellexport.request_key": "good",
        }

        # A caller's mistake (NOT_FOUND) must not mark the server's span as an error.
        refused = collector.span("cellexport-server", "unknown")
        assert attributes(refused)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
        assert refused.status.code == Status.STATUS_CODE_UNSET

        server.kill()
        unit.http(headers=headers | {"X-Personium-RequestKey": "away"})
        assert collector.span("cellexport-gateway", "away").status.code == Status.STATUS_CODE_ERROR
        assert next(line for line in gateway.lines() if line.get("request_key") == "away")["trace_id"] == TRACE_ID

        sent = b"".join(request.SerializeToString() for request in collector.requests)
        assert TOKEN.encode() not in sent
        assert b"canary-query" not in sent


def test_a_direct_caller_is_followed_too_and_what_ended_last_is_sent(unit: Unit) -> None:
    with collecting() as collector:
        unit.settings |= collector.settings | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
        server, gateway = unit.start_server(), unit.start_gateway()

        unit.http(headers={"X-Personium-RequestKey": "web"})
        with unit.channel() as channel:
            metadata = (*client.bearer(TOKEN), ("traceparent", TRACEPARENT), ("x-personium-requestkey", "direct"))
            CellExportServiceStub(channel).GetCellExport(GetCellExportRequest(cell="demo"), metadata=metadata)
            with pytest.raises(grpc.RpcError):
                HandExporter(channel, "wrong").claim(wait=0)

        assert gateway.terminate() == 0
        assert collector.span("cellexport-gateway", "web")
        assert server.terminate() == 0

        span = collector.span("cellexport-server", "direct")
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, CALLER)

        other = next(s for s in collector.spans("cellexport-server") if "ClaimExport" in s.name)
        assert not other.parent_span_id
        refusal = next(line for line in server.lines() if line["message"] == "call refused")
        assert refusal["trace_id"] == other.trace_id.hex()


def test_a_collector_that_is_away_costs_nobody_anything(unit: Unit) -> None:
    unit.settings |= Collector(port=1).settings
    server = unit.start_server()
    unit.start_gateway()
    assert unit.http().status == 200
    assert server.terminate() == 0


def test_without_traces_the_trace_id_is_in_both_logs(unit: Unit) -> None:
    server, gateway = unit.start_server(), unit.start_gateway()
    unit.http(token="wrong", headers={"traceparent": TRACEPARENT})
    unit.http("PATCH", headers={"traceparent": TRACEPARENT})
    unit.http("PATCH")
    lines = [line for line in (*server.lines(), *gateway.lines()) if line["message"].endswith("refused")]
    assert [line.get("trace_id") for line in lines] == [TRACE_ID, TRACE_ID, None]


def test_traces_that_cannot_be_had_are_one_clear_sentence(unit: Unit, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('as if it were not installed')")
    for more, name in (
        ({"PYTHONPATH": str(tmp_path)}, "CELLEXPORT_TRACES"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ):
        program = unit.start("server", CELLEXPORT_TRACES="on", **more)
        assert program.process.wait(60) == 2
        assert re.fullmatch(rf"cellexport-server: {name}: .+\n", program.log.read_text())
