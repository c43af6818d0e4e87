"""The endpoints: read the status of a cell's export, start an export, and two probes."""

from flask import Flask, Response, g, request

from cellexport import client
from cellexport.program.unit_urls import UnitUrls
from gateway import errors, forwarding, render
from gateway.body import Bodies
from gateway.error_responses import ErrorResponses
from gateway.errors import ApiError
from gateway.methods import PROBE_PATHS
from gateway.readiness import Readiness
from gateway.responses import json_response
from gateway.upstream import Upstream

_PATHS = ("/<cell>/__export", "/<cell>/__export/")


class Views:
    """The endpoints. Each converts an HTTP request to one gRPC call, and the call's response to an HTTP response.

    Args:
        error_responses: makes the response of `/readyz` if the gateway is not ready.
    """

    def __init__(
        self, *, urls: UnitUrls, upstream: Upstream, readiness: Readiness, error_responses: ErrorResponses
    ) -> None:
        self._urls = urls
        self._upstream = upstream
        self._readiness = readiness
        self._error_responses = error_responses
        self._bodies = Bodies()

    def register(self, app: Flask) -> None:
        """Register the routes on an application."""
        for path in _PATHS:
            app.add_url_rule(path, "get", self.get, methods=["GET"], provide_automatic_options=False)
            app.add_url_rule(path, "start", self.start, methods=["POST"], provide_automatic_options=False)
        for path, probe in zip(PROBE_PATHS, (self.livez, self.readyz), strict=True):
            app.add_url_rule(path, path, probe, methods=["GET"], provide_automatic_options=False)

    def get(self, cell: str) -> Response:
        """Return the status of the cell's export."""
        return json_response(render.status(self._upstream.get(_utf8(cell), _metadata())))

    def start(self, cell: str) -> Response:
        """Start an export. Return 202, with the URL of the status in `Location`."""
        name = self._bodies.name(request.environ)
        self._upstream.start(_utf8(cell), name, _metadata())
        response = Response(status=202)
        response.headers["Location"] = f"{self._urls.cell(cell)}__export"
        del response.headers["Content-Type"]
        return response

    def livez(self) -> Response:
        """Return 200: the gateway runs. The server's state doesn't matter."""
        return json_response(render.operational())

    def readyz(self) -> Response:
        """Return 200 if a server is SERVING, else 503. Don't log a probe: orchestrators may send one every second."""
        if self._readiness.is_ready():
            return json_response(render.operational())
        return self._error_responses.answer(ApiError(errors.SERVER_AWAY))


def _metadata() -> client.Metadata:
    return forwarding.metadata(request, g.request_key)


def _utf8(cell: str) -> str:
    """Return a cell's name with `?` for each lone surrogate: a protobuf message can't hold surrogates."""
    return cell.encode("utf-8", "replace").decode()
