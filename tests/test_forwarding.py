"""The metadata that the gateway forwards, recorded by a real gRPC server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from wsgiref.types import WSGIApplication

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.test import Client

from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, GetCellExportResponse
from gateway import create_app
from gateway.settings import Settings
from thoroughness import examples, property_test

ALLOWED = {
    "authorization",
    "p-cookie",
    "p-cookie-peer",
    "x-personium-unit-user",
    "x-personium-requestkey",
    "traceparent",
}
# The metadata that gRPC adds to every call. The gateway has not forwarded it.
OF_GRPC = {"user-agent"}


@dataclass
class Seen:
    """An HTTP client of the gateway, and the metadata of each gRPC call that then arrived at the recording server."""

    client: Client
    calls: list[tuple[tuple[str, str], ...]] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    calls: list[tuple[tuple[str, str], ...]] = []

    def get(request: GetCellExportRequest, context: grpc.ServicerContext) -> GetCellExportResponse:
        calls.append(tuple((name, str(value)) for name, value in context.invocation_metadata()))
        return GetCellExportResponse(cell_export=CellExport(state=CellExport.STATE_READY))

    handler = grpc.unary_unary_rpc_method_handler(
        get,
        request_deserializer=GetCellExportRequest.FromString,
        response_serializer=GetCellExportResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    service = grpc.method_handlers_generic_handler("cellexport.v1.CellExportService", {"GetCellExport": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    app: WSGIApplication = create_app(Settings.read({"CELLEXPORT_GRPC_TARGET": f"127.0.0.1:{port}"}))
    yield Seen(Client(app, use_cookies=False), calls)
    server.stop(None)


KNOWN = """Authorization Cookie X-Override X-Personium-Unit-User X-Personium-RequestKey Accept Grpc-Timeout traceparent
Grpc-Metadata-authorization x-authenticated-user p-cookie p-cookie-peer X-Forwarded-For"""
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
VALUES = [
    TRACE,
    "Bearer a",
    "Basic eDp5",
    "p_cookie=x",
    "p_cookie=x; p_cookie=y",
    "Authorization: Bearer b",
    "é" * 5000,
]
QUERIES = ["", "p_cookie_peer=a", "p_cookie_peer=a&p_cookie_peer=b"]

header_names = st.one_of(st.sampled_from(KNOWN.split()), st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True))
header_values = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
    st.sampled_from(VALUES),
    st.integers(1, 9000).map(lambda size: "Bearer " + "x" * size),
)
queries = st.one_of(st.sampled_from(QUERIES), st.text(max_size=30))


@property_test
@settings(max_examples=examples(300, 2000), deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(120)
@given(st.lists(st.tuples(header_names, header_values), max_size=6), queries)
def test_metadata_is_an_allow_list(seen: Seen, headers: list[tuple[str, str]], query: str) -> None:
    seen.calls.clear()
    sent = Headers([(name, value) for name, value in headers if name.lower() not in ("host", "content-length")])
    answer = seen.client.get("/demo/__export", headers=sent, query_string=query)
    assert answer.status_code in (200, 400)
    assert len(seen.calls) == (answer.status_code == 200)

    for metadata in seen.calls:
        names = [name for name, _ in metadata if name not in OF_GRPC]
        assert set(names) <= ALLOWED
        assert names.count("x-personium-requestkey") == 1
        assert not ("authorization" in names and "p-cookie" in names)
        assert sum(len(name) + len(value) + 32 for name, value in metadata) < 16 * 1024
        assert all(value.isascii() and (value.isprintable() or not value) for _, value in metadata)


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ([("Authorization", "Bearer a")], "p_cookie_peer=b", [("authorization", "Bearer a")]),
        ([("Authorization", "")], "p_cookie_peer=b", [("authorization", "")]),
        ([("Cookie", "p_cookie=x")], "p_cookie_peer=b", [("p-cookie", "x"), ("p-cookie-peer", "b")]),
        ([("Cookie", "p_cookie=x")], "", []),
        ([("Cookie", "a=b")], "p_cookie_peer=b", [("p-cookie-peer", "b")]),
        ([("Authorization", "Bearer é")], "", [("authorization", "Bearer")]),
        ([("Authorization", "Digest é")], "", [("authorization", "Other")]),
        ([("X-Personium-Unit-User", "é")], "", [("x-personium-unit-user", "?")]),
        ([("traceparent", TRACE)], "", [("traceparent", TRACE)]),
        ([("traceparent", TRACE), ("tracestate", "a=b"), ("baggage", "c=d")], "", [("traceparent", TRACE)]),
        ([("traceparent", TRACE), ("traceparent", TRACE)], "", []),
        ([("traceparent", f"{TRACE}-more")], "", []),
        ([("traceparent", f"ff{TRACE[2:]}")], "", []),
        ([("traceparent", TRACE.upper())], "", []),
        ([("traceparent", f"00-{'0' * 32}-{'1' * 16}-01")], "", []),
        ([("traceparent", f"00-{'1' * 32}-{'0' * 16}-01")], "", []),
    ],
)
def test_only_the_allowed_headers_are_forwarded(
    seen: Seen, headers: list[tuple[str, str]], query: str, expected: list[tuple[str, str]]
) -> None:
    seen.calls.clear()
    seen.client.get("/demo/__export", headers=headers, query_string=query)
    left_out = OF_GRPC | {"x-personium-requestkey"}
    assert [entry for entry in seen.calls[0] if entry[0] not in left_out] == expected
