"""Errors of gRPC calls as HTTP responses: a test server sends the errors, and the real gateway application answers."""

from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from werkzeug.test import Client, TestResponse

from cellexport.metadata import DOMAIN
from gateway import create_app
from gateway.settings import Settings
from server import refusals
from server.rpc.refusal_table import STATUS

METHOD = "/cellexport.v1.CellExportService/GetCellExport"
UNIT_URL = "https://unit1.example/"


@dataclass(frozen=True)
class Refusal:
    """An error that the test server sends. Without a `reason` the error has no details, like gRPC's own errors."""

    status: grpc.StatusCode
    reason: str = "NEWER_THAN_THE_GATEWAY"
    domain: str = DOMAIN
    code: str = ""
    message: str = "Newer than the gateway."
    retry: bool = False
    details: Mapping[str, str] = field(default_factory=dict)
    more: any_pb2.Any | None = None


class RefusingServer(grpc.GenericRpcHandler):
    """A server that refuses every call with the same refusal."""

    def __init__(self, refusal: Refusal) -> None:
        self._refusal = refusal

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        refusal = self._refusal
        status = status_pb2.Status(code=refusal.status.value[0], message=refusal.message)
        metadata = dict(refusal.details) | ({"personium_code": refusal.code} if refusal.code else {})
        info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=refusal.domain, metadata=metadata)
        if refusal.reason:
            status.details.add().Pack(info)
        if refusal.retry:
            delay = duration_pb2.Duration(seconds=1)
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        if refusal.more:
            status.details.append(refusal.more)
        if status.details:
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(refusal.status, refusal.message)


@contextmanager
def facade(refusal: Refusal) -> Iterator[Client]:
    """Run the gateway application in front of a server that refuses every call."""
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[RefusingServer(refusal)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        settings = Settings.read({"CELLEXPORT_GRPC_TARGET": f"127.0.0.1:{port}", "CELLEXPORT_UNIT_URL": UNIT_URL})
        yield Client(create_app(settings))
    finally:
        server.stop(None).wait()


def ask(refusal: Refusal) -> TestResponse:
    with facade(refusal) as http:
        return http.get("/demo/__export")


# The Personium code of the HTTP response to each gRPC status, if the server's error has no code. The three digits of
# the code are the HTTP status.
STATUSES = {
    "INVALID_ARGUMENT": "PR400-CX-0000",
    "OUT_OF_RANGE": "PR400-CX-0000",
    "UNAUTHENTICATED": "PR401-AU-0001",
    "PERMISSION_DENIED": "PR403-AU-0002",
    "NOT_FOUND": "PR404-CX-0000",
    "ALREADY_EXISTS": "PR409-CX-0000",
    "FAILED_PRECONDITION": "PR409-CX-0000",
    "ABORTED": "PR409-CX-0000",
    "RESOURCE_EXHAUSTED": "PR503-SV-0001",
    "UNAVAILABLE": "PR503-SV-0002",
    "CANCELLED": "PR503-SV-0002",
    "DEADLINE_EXCEEDED": "PR504-SV-0001",
    "DATA_LOSS": "PR500-SV-9999",
    "INTERNAL": "PR500-SV-9999",
    "UNKNOWN": "PR500-SV-9999",
    "UNIMPLEMENTED": "PR500-SV-9999",
}


def test_the_table_names_every_status_of_an_error() -> None:
    assert STATUSES.keys() == {status.name for status in grpc.StatusCode if status is not grpc.StatusCode.OK}


@pytest.mark.parametrize(("status", "code"), STATUSES.items())
def test_an_unknown_reason_without_a_code_is_answered_by_its_status(status: str, code: str) -> None:
    answer = ask(Refusal(grpc.StatusCode[status]))
    assert (answer.status_code, answer.json["code"]) == (int(code[2:5]), code)  # type: ignore[index]  # the body is JSON
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(("status", "code"), STATUSES.items())
@pytest.mark.parametrize("retry", [False, True])
def test_an_unknown_reason_with_a_code_is_answered_by_code_and_message(status: str, code: str, retry: bool) -> None:
    newer = f"{code[:6]}ZZ-0042"
    answer = ask(Refusal(grpc.StatusCode[status], code=newer, retry=retry))
    assert answer.status_code == int(code[2:5])
    assert answer.json == {"code": newer, "message": {"lang": "en", "value": "Newer than the gateway."}}
    assert ("Retry-After" in answer.headers) == retry


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR409-ZZ-0042"),
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042\n"),
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-zz-0042"),
        Refusal(grpc.StatusCode.NOT_FOUND, code="404"),
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042", message=""),
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042", message="x" * 513),
        Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042", message="two\nlines"),
    ],
)
def test_a_code_or_message_that_can_not_be_right_is_not_passed_on(refusal: Refusal) -> None:
    answer = ask(refusal)
    assert answer.status_code == 404
    assert answer.json == {
        "code": "PR404-CX-0000",
        "message": {"lang": "en", "value": "The server did not find the resource."},
    }


def test_braces_in_a_message_are_left_alone() -> None:
    answer = ask(Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042", message="No {} here."))
    assert answer.json["message"]["value"] == "No {} here."  # type: ignore[index]  # the body is JSON


@pytest.mark.parametrize("code", ["", "PR401-ZZ-0042"])
def test_a_newer_401_has_a_challenge_that_blames_no_token(code: str) -> None:
    answer = ask(Refusal(grpc.StatusCode.UNAUTHENTICATED, code=code))
    assert answer.headers.getlist("WWW-Authenticate") == [f'Bearer realm="{UNIT_URL}demo/"']


# The message of an HTTP error is the server's text, except for these two reasons: the gateway puts the details of the
# server's error into their messages.
REWORDED = {"SNAPSHOT_EXISTS": "File [one.zip] already exists.", "UNEXPECTED": "Unknown Exception [0123]"}
INVALID_TOKEN = {"TOKEN_EXPIRED", "TOKEN_INVALID", "REFRESH_TOKEN", "SIGNATURE_INVALID"}


@pytest.mark.parametrize("known", refusals.Refusal, ids=lambda known: known.name)
def test_every_reason_of_the_server_is_answered_by_its_code(known: refusals.Refusal) -> None:
    details = {"name": "one", "error_id": "0123", "privilege": "root"}
    text, spec = refusals.Refused(known, **details).text, known.value
    answer = ask(Refusal(STATUS[known], known.name, DOMAIN, spec.personium_code, text, spec.retry, details))
    message = {"lang": "en", "value": REWORDED.get(known.name, text)}
    assert answer.status_code == int(spec.personium_code[2:5])
    assert answer.json == {"code": spec.personium_code, "message": message}
    assert answer.headers.get("Retry-After") == ("1" if spec.retry else None)
    error = ', error="invalid_token"' if known.name in INVALID_TOKEN else ""
    challenges = [f'Bearer realm="{UNIT_URL}demo/"{error}'] if answer.status_code == 401 else []
    assert answer.headers.getlist("WWW-Authenticate") == challenges


OF_GRPC = {"UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize(("status", "code"), STATUSES.items())
@pytest.mark.parametrize("foreign", [False, True])
def test_without_the_servers_details_only_a_status_of_grpc_itself_is_passed_on(
    status: str, code: str, foreign: bool
) -> None:
    # The gateway ignores error details of another domain, for example those that a proxy has added.
    reason, domain = ("TOKEN_EXPIRED", "proxy.example") if foreign else ("", "")
    answer = ask(Refusal(grpc.StatusCode[status], reason, domain, code="PR404-ZZ-0042"))
    expected = code if status in OF_GRPC else "PR500-SV-9999"
    assert answer.json["code"] == expected  # type: ignore[index]  # the body is JSON
    assert answer.status_code == int(expected[2:5])
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    assert "WWW-Authenticate" not in answer.headers


def test_a_5xx_of_the_server_is_logged_with_code_status_and_details(caplog: pytest.LogCaptureFixture) -> None:
    ask(Refusal(grpc.StatusCode.UNAVAILABLE, code="PR503-ZZ-0042", message="x" * 500))
    [record] = [record for record in caplog.records if record.message == "call failed"]
    logged = vars(record)
    assert (logged["code"], logged["status"], logged["details"]) == ("PR503-ZZ-0042", "UNAVAILABLE", "x" * 400)


def test_a_4xx_of_the_server_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    ask(Refusal(grpc.StatusCode.NOT_FOUND, code="PR404-ZZ-0042"))
    assert not [record for record in caplog.records if record.name.startswith("gateway")]


def packed(seconds: int) -> any_pb2.Any:
    """Return a RetryInfo with any number of seconds, possible or not."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds)))
    return detail


@pytest.mark.parametrize(
    ("detail", "retry_after"),
    [
        (packed(2), "1"),
        (packed(10**14), "1"),
        (packed(2**63 - 1), "1"),
        (packed(-(2**63)), None),
        (any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff\xff"), None),
        (any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff"), None),
        (any_pb2.Any(type_url="nonsense", value=b"\xff"), None),
    ],
)
def test_a_malformed_detail_changes_no_refusal(detail: any_pb2.Any, retry_after: str | None) -> None:
    refusal = Refusal(
        grpc.StatusCode.UNAVAILABLE,
        reason="STORE_UNAVAILABLE",
        code="PR503-SV-0003",
        message="Data access failure.",
        more=detail,
    )
    answer = ask(refusal)

    assert answer.status_code == 503
    assert answer.json["code"] == "PR503-SV-0003"  # type: ignore[index]  # the body is JSON
    assert answer.headers.get("Retry-After") == retry_after
