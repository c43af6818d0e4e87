"""What is served: the routes, the order of checks, the headers, and what is forwarded to the server."""

import logging
import secrets

import grpc
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from cellexport import client, request_key
from gateway import errors, render
from gateway.body import Bodies
from gateway.config import Settings
from gateway.errors import ApiError
from gateway.upstream import Upstream

_METHODS = "GET, HEAD, POST, OPTIONS"
_CREDENTIAL_LIMIT = 4096
_EXPOSED = (
    "X-Personium-Version, X-Personium-RequestKey, WWW-Authenticate, Location, Retry-After, ETag, Preference-Applied"
)

_log = logging.getLogger(__name__)


def register(app: Flask, settings: Settings, upstream: Upstream) -> None:
    """Put the facade's routes and handlers on an application."""
    views = _Views(settings, upstream)
    app.before_request(views.take_request_key)
    app.before_request(views.refuse_double_slash)
    app.after_request(views.add_headers)
    rules = ("/<cell>/__export", "/<cell>/__export/")
    for rule in rules:
        app.add_url_rule(rule, "get", views.get, methods=["GET"], provide_automatic_options=False)
        app.add_url_rule(rule, "start", views.start, methods=["POST"], provide_automatic_options=False)
        app.add_url_rule(rule, "options", views.options, methods=["OPTIONS"])
    app.register_error_handler(ApiError, views.refuse)
    app.register_error_handler(grpc.RpcError, views.refuse_call)
    app.register_error_handler(HTTPException, views.refuse_http)
    app.register_error_handler(Exception, views.refuse_unexpected)


class _Views:
    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._unit_url = settings.unit_url
        self._version = settings.personium_version
        self._upstream = upstream
        self._bodies = Bodies()

    def get(self, cell: str) -> Response:
        return _json(render.status(self._upstream.get(_utf8(cell), _metadata())))

    def start(self, cell: str) -> Response:
        name = self._bodies.name(request.environ)
        self._upstream.start(_utf8(cell), name, _metadata())
        response = Response(status=202)
        response.headers["Location"] = f"{self._unit_url}{cell}/__export"
        del response.headers["Content-Type"]
        return response

    def options(self, cell: str) -> Response:
        response = Response()
        response.headers["Allow"] = _METHODS
        del response.headers["Content-Type"]
        return response

    def take_request_key(self) -> None:
        key = request.headers.get(request_key.HEADER, "")
        g.request_key = key if request_key.is_valid(key) else request_key.generate()
        if key and key != g.request_key:
            raise ApiError(errors.REQUEST_KEY_INVALID)

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
        problem = error.problem
        response = _json(render.error(problem.code, error.message), problem.status)
        if problem.status == 401:
            response.headers["WWW-Authenticate"] = self._challenge(problem)
        if problem.status == 405:
            response.headers["Allow"] = _METHODS
        if problem.retry:
            response.headers["Retry-After"] = str(errors.RETRY_AFTER_SECONDS)
        return response

    def refuse_call(self, error: grpc.RpcError) -> Response:
        known = errors.from_call(error)
        if known is None:
            return self.refuse_unexpected(error)
        if known.problem.status >= 500:
            _log.warning("the call failed", extra={"code": known.problem.code, "request_key": g.request_key})
        return self.refuse(known)

    def refuse_http(self, error: HTTPException) -> Response:
        if isinstance(error, NotFound):
            return self.refuse(ApiError(errors.URI_UNKNOWN))
        if isinstance(error, MethodNotAllowed):
            return self.refuse(ApiError(errors.METHOD_NOT_ALLOWED))
        return self.refuse_unexpected(error)

    def refuse_unexpected(self, error: Exception) -> Response:
        error_id = secrets.token_hex(8)
        _log.error("unexpected error", exc_info=error, extra={"error_id": error_id, "request_key": g.request_key})
        return self.refuse(ApiError(errors.UNEXPECTED, error_id))

    def _challenge(self, problem: errors.Problem) -> str:
        cell = (request.view_args or {}).get("cell", "")
        realm = f'Bearer realm="{self._unit_url}{cell}/"'
        return realm + ', error="invalid_token"' if problem.invalid_token else realm


def _json(body: str, status: int = 200) -> Response:
    return Response(body, status=status, content_type="application/json")


def _utf8(cell: str) -> str:
    """A cell's name as a message can hold it."""
    return cell.encode("utf-8", "replace").decode()


def _metadata() -> client.Metadata:
    """All that the server gets to know of a request besides the cell."""
    metadata = [(request_key.METADATA, g.request_key)]
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        metadata.append((client.AUTHORIZATION, _forwardable(authorization)))
    unit_user = request.headers.get("X-Personium-Unit-User")
    if unit_user:
        # Whoever it names, its being there is what counts.
        metadata.append((client.UNIT_USER, unit_user if _is_plain(unit_user) else "malformed"))
    return tuple(metadata)


def _forwardable(authorization: str) -> str:
    """A credential that would break the call is cut down to its scheme, and judged malformed in its place."""
    if _is_plain(authorization):
        return authorization
    for scheme in ("Bearer", "Basic"):
        if authorization[: len(scheme)].lower() == scheme.lower():
            return scheme
    return "Other"


def _is_plain(value: str) -> bool:
    return len(value) <= _CREDENTIAL_LIMIT and value.isascii() and value.isprintable()
