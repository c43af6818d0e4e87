"""The facade: `GET /{CellName}/__export` over HTTP, in front of the gRPC service.

It knows HTTP, the words of the document, and the stub; it decides nothing and adds no authority. The way of a request:

    `views`      routes, the order of checks, what is forwarded
    `upstream`   the call, and its deadline
    `render`     the status in the document's words
    `errors`     every error, as data: reasons of the contract to bodies of the document

`create_app` makes a plain WSGI application for any server; `python -m gateway` serves it with Granian.
"""

import os

from flask import Flask

from gateway.config import Settings
from gateway.upstream import Upstream
from gateway.views import register

_BODY_LIMIT = 64 * 1024


def create_app(settings: Settings | None = None) -> Flask:
    """The application.

    Args:
        settings: read from the environment if left out.

    Raises:
        SettingError: if a setting has a bad value.
    """
    settings = settings or Settings.read(os.environ)
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _BODY_LIMIT
    app.url_map.merge_slashes = False
    register(app, settings, Upstream(settings.target))
    return app
