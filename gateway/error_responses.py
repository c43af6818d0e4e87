"""The answers to errors: every exception becomes a response with a code and a message (see `errors`)."""

import logging
import secrets

import grpc
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from cellexport.environment import SettingError
from cellexport.program.unit_urls import UnitUrls
from gateway import call_errors, errors, render
from gateway.errors import ApiError, Problem
from gateway.methods import ALLOW, PROBE_ALLOW, PROBE_PATHS
from gateway.responses import json_response

# The longest text of a gRPC error in the log, in characters: the text may name an address, or a name that a certificate
# lacks.
_LONGEST_LOGGED_DETAILS = 400

_log = logging.getLogger(__name__)


class ErrorResponses:
    """Makes the answer to each kind of exception.

    Args:
        urls: the unit's URLs, for the realm of a challenge.
    """

    def __init__(self, urls: UnitUrls) -> None:
        self._urls = urls

    def register(self, app: Flask) -> None:
        """Register the handlers on an application."""
        app.register_error_handler(ApiError, self.api_error)
        app.register_error_handler(grpc.RpcError, self.call_error)
        app.register_error_handler(SettingError, self.setting_error)
        app.register_error_handler(HTTPException, self.http_error)
        app.register_error_handler(Exception, self.unexpected_error)

    def answer(self, error: ApiError) -> Response:
        """Return the response for an error, without logging it."""
        problem = error.problem
        response = json_response(render.error(problem.code, error.message), problem.status)
        if problem.status == 401:
            response.headers["WWW-Authenticate"] = self._challenge(problem)
        if problem.status == 405:
            response.headers["Allow"] = PROBE_ALLOW if request.path in PROBE_PATHS else ALLOW
        if problem.retry:
            response.headers["Retry-After"] = str(errors.RETRY_AFTER_SECONDS)
        return response

    def api_error(self, error: ApiError) -> Response:
        """Answer an error that the gateway itself found, and log it, because the server has not seen the request."""
        fields = {"code": error.problem.code, "method": request.method, "path": request.path}
        _log.info("refused", extra=fields | {"request_key": g.request_key})
        return self.answer(error)

    def call_error(self, error: grpc.RpcError) -> Response:
        """Answer a failed call to the server. Log it if the HTTP status is 500 or above: the server logs only the calls
        that reach it.
        """
        known = call_errors.from_call(error)
        if known is None:
            return self.unexpected_error(error)
        if known.problem.status >= 500:
            details = {"status": error.code().name, "details": (error.details() or "")[:_LONGEST_LOGGED_DETAILS]}
            _log.warning("call failed", extra={"code": known.problem.code, "request_key": g.request_key} | details)
        return self.answer(known)

    def setting_error(self, error: SettingError) -> Response:
        """Answer a request that can't be forwarded: no channel to the server is open, and the TLS files are invalid."""
        _log.warning("no channel to the server", extra={"why": str(error), "request_key": g.request_key})
        return self.answer(ApiError(errors.SERVER_AWAY))

    def http_error(self, error: HTTPException) -> Response:
        """Answer a request whose path or method Flask's router refuses."""
        if isinstance(error, NotFound):
            return self.api_error(ApiError(errors.URI_UNKNOWN))
        if isinstance(error, MethodNotAllowed):
            return self.api_error(ApiError(errors.METHOD_NOT_ALLOWED))
        return self.unexpected_error(error)

    def unexpected_error(self, error: Exception) -> Response:
        """Answer any other exception with 500 and a random id, and log the exception with the same id."""
        error_id = secrets.token_hex(8)
        _log.error(
            "request failed: unexpected error",
            exc_info=error,
            extra={"error_id": error_id, "request_key": g.request_key},
        )
        return self.answer(ApiError(errors.UNEXPECTED, error_id))

    def _challenge(self, problem: Problem) -> str:
        cell = (request.view_args or {}).get("cell", "")
        realm = f'Bearer realm="{self._urls.cell(cell)}"'
        return realm + ', error="invalid_token"' if problem.invalid_token else realm
