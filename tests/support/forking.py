"""A WSGI server that makes the application before it forks its workers, as gunicorn does with --preload.

    python tests/support/forking.py PORT...

Each port has a worker of its own, so that the client chooses the worker. SIGTERM ends all workers.
"""

import os
import signal
import sys
from socketserver import ThreadingMixIn
from types import FrameType
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from gateway import create_app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


def main(ports: list[int]) -> None:
    """Fork a worker for each port, and serve until SIGTERM."""
    app = create_app()
    workers = []
    for port in ports:
        server = make_server("127.0.0.1", port, app, _Server, _Quiet)
        worker = os.fork()
        if worker == 0:
            server.serve_forever()
        server.server_close()
        workers.append(worker)

    def end(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    for worker in workers:
        os.waitpid(worker, 0)


if __name__ == "__main__":
    main([int(port) for port in sys.argv[1:]])
