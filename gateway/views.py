"""What is served: the routes, the order of checks, and the headers."""

import logging
import re
import secrets

import grpc
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from cellexport import client, request_key
from cellexport.environment import SettingError
from gateway import errors, forwarding, overrides, render
from gateway.body import Bodies
from gateway.errors import ApiError
from gateway.readiness import Readiness
from gateway.settings import Settings
from gateway.upstream import Upstream

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_METHODS = ", ".join(METHODS)
_PROBES = ("/livez", "/readyz")
_WANTED_LIMIT = 1024
# Of what gRPC says in the log, why a call failed: an address, or a name that a certificate lacks.
_DETAILS_LIMIT = 400
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_NAMES = re.compile(rf"{_NAME}(?:[ \t]*,[ \t]*{_NAME})*")
_EXPOSED = (
    "X-Personium-Version, X-Personium-RequestKey, WWW-Authenticate, Location, Retry-After, ETag, Preference-Applied"
)

_log = logging.getLogger(__name__)


def register(app: Flask, settings: Settings, upstream: Upstream, readiness: Readiness) -> None:
    """Put the facade's routes and handlers on an application."""
    views = _Views(settings, upstream, readiness)
    # The order of checks: routing has its say after these.
    for check in (views.take_request_key, views.refuse_override, views.answer_preflight, views.refuse_double_slash):
        app.before_request(check)
    app.after_request(views.add_headers)
    rules = ("/<cell>/__export", "/<cell>/__export/")
    for rule in rules:
        app.add_url_rule(rule, "get", views.get, methods=["GET"], provide_automatic_options=False)
        app.add_url_rule(rule, "start", views.start, methods=["POST"], provide_automatic_options=False)
    for path, probe in zip(_PROBES, (views.livez, views.readyz), strict=True):
        app.add_url_rule(path, path, probe, methods=["GET"], provide_automatic_options=False)
    app.register_error_handler(ApiError, views.refuse)
    app.register_error_handler(grpc.RpcError, views.refuse_call)
    app.register_error_handler(SettingError, views.refuse_for_now)
    app.register_error_handler(HTTPException, views.refuse_http)
    app.register_error_handler(Exception, views.refuse_unexpected)


class _Views:
    def __init__(self, settings: Settings, upstream: Upstream, readiness: Readiness) -> None:
        self._urls = settings.urls
        self._version = settings.personium_version
        self._upstream = upstream
        self._readiness = readiness
        self._bodies = Bodies()

    def get(self, cell: str) -> Response:
        return _json(render.status(self._upstream.get(_utf8(cell), self._metadata())))

    def start(self, cell: str) -> Response:
        name = self._bodies.name(request.environ)
        self._upstream.start(_utf8(cell), name, self._metadata())
        response = Response(status=202)
        response.headers["Location"] = f"{self._urls.cell(cell)}__export"
        del response.headers["Content-Type"]
        return response

    def livez(self) -> Response:
        """200 whatever the server does."""
        return _json(render.operational())

    def readyz(self) -> Response:
        # Asked so often, and by nobody who did anything wrong: neither answer is logged.
        return _json(render.operational()) if self._readiness.known() else self._answer(ApiError(errors.SERVER_AWAY))

    def take_request_key(self) -> None:
        key = request.headers.get(request_key.HEADER, "")
        g.request_key = key if request_key.is_valid(key) else request_key.generate()
        if key and key != g.request_key:
            raise ApiError(errors.REQUEST_KEY_INVALID)

    def refuse_override(self) -> None:
        why = request.environ.get(overrides.REFUSED)
        if why:
            raise ApiError(errors.HEADER_INVALID, f"X-Override value is invalid [{why}]")

    def answer_preflight(self) -> Response | None:
        if request.method != "OPTIONS":
            return None
        response = Response()
        del response.headers["Content-Type"]
        response.headers["Allow"] = _METHODS
        response.headers["Access-Control-Allow-Methods"] = _METHODS
        response.headers["Access-Control-Max-Age"] = "86400"
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        if len(wanted) <= _WANTED_LIMIT and _HEADER_NAMES.fullmatch(wanted):
            response.headers["Access-Control-Allow-Headers"] = wanted
        return response

    def refuse_double_slash(self) -> None:
        # The router takes several slashes at the beginning for one.
        if request.environ.get("PATH_INFO", "").startswith("//"):
            raise ApiError(errors.URI_UNKNOWN)

    def add_headers(self, response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers["X-Personium-Version"] = self._version
        response.headers[request_key.HEADER] = g.request_key
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def refuse(self, error: ApiError) -> Response:
        """What the server has not seen, and so has not logged."""
        labels = {"code": error.problem.code, "method": request.method, "path": request.path}
        _log.info("refused", extra=labels | {"request_key": g.request_key})
        return self._answer(error)

    def _answer(self, error: ApiError) -> Response:
        problem = error.problem
        response = _json(render.error(problem.code, error.message), problem.status)
        if problem.status == 401:
            response.headers["WWW-Authenticate"] = self._challenge(problem)
        if problem.status == 405:
            response.headers["Allow"] = "GET, HEAD, OPTIONS" if request.path in _PROBES else _METHODS
        if problem.retry:
            response.headers["Retry-After"] = str(errors.RETRY_AFTER_SECONDS)
        return response

    def refuse_call(self, error: grpc.RpcError) -> Response:
        known = errors.from_call(error)
        if known is None:
            return self.refuse_unexpected(error)
        if known.problem.status >= 500:
            details = {"status": error.code().name, "details": (error.details() or "")[:_DETAILS_LIMIT]}
            _log.warning("the call failed", extra={"code": known.problem.code, "request_key": g.request_key} | details)
        return self._answer(known)

    def refuse_for_now(self, error: SettingError) -> Response:
        """There is no channel to the server yet, and the TLS files that it needs are no good."""
        _log.warning("the server can't be called", extra={"why": str(error), "request_key": g.request_key})
        return self._answer(ApiError(errors.SERVER_AWAY))

    def refuse_http(self, error: HTTPException) -> Response:
        if isinstance(error, NotFound):
            return self.refuse(ApiError(errors.URI_UNKNOWN))
        if isinstance(error, MethodNotAllowed):
            return self.refuse(ApiError(errors.METHOD_NOT_ALLOWED))
        return self.refuse_unexpected(error)

    def refuse_unexpected(self, error: Exception) -> Response:
        error_id = secrets.token_hex(8)
        _log.error("unexpected error", exc_info=error, extra={"error_id": error_id, "request_key": g.request_key})
        return self._answer(ApiError(errors.UNEXPECTED, error_id))

    def _metadata(self) -> client.Metadata:
        return forwarding.metadata(request, g.request_key)

    def _challenge(self, problem: errors.Problem) -> str:
        cell = (request.view_args or {}).get("cell", "")
        realm = f'Bearer realm="{self._urls.cell(cell)}"'
        return realm + ', error="invalid_token"' if problem.invalid_token else realm


def _json(body: str, status: int = 200) -> Response:
    return Response(body, status=status, content_type="application/json")


def _utf8(cell: str) -> str:
    """A cell's name as a message can hold it."""
    return cell.encode("utf-8", "replace").decode()
