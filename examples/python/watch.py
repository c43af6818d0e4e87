"""Ask for the status of a cell's export, then watch it until no export is under way.

TOKEN=… .venv/bin/python examples/python/watch.py CELL
"""

import os
import sys

import grpc

from cellexport import client, watching
from cellexport.environment import Environment, SettingError
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, Outcome
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub


def main(cell: str) -> None:
    environment = Environment(os.environ)
    secret = environment.secret_source("TOKEN")
    if secret is None:
        raise SettingError("TOKEN: is not set. Set it to the token that make run printed, or another.")

    def token() -> client.Metadata:
        """What to present: asked for each time, since tokens may be exchanged meanwhile, in TOKEN_FILE."""
        return client.bearer(secret.latest().reveal())

    target = client.target(environment)
    with client.channel(target, client.tls(environment)) as channel:
        try:
            status = get(channel, cell, token())
            print(status.revision, shown(status), flush=True)
            after = status.revision
            for message in watching.watch(channel, cell, token, after_revision=after, until_ready=True):
                # Without a status the message says that the last one still holds.
                if message.HasField("cell_export"):
                    print(message.revision, shown(message.cell_export), flush=True)
        except grpc.RpcError as error:
            sys.exit(explained(error, target))


def get(channel: grpc.Channel, cell: str, token: client.Metadata) -> CellExport:
    """The status now. A call without a timeout may wait for ever."""
    stub = CellExportServiceStub(channel)
    return stub.GetCellExport(GetCellExportRequest(cell=cell), metadata=token, timeout=3).cell_export


def shown(status: CellExport) -> str:
    if status.state == CellExport.STATE_EXPORTING:
        return f"exporting {status.exportation.progress_percent}% {status.exportation.name}"
    if not status.HasField("last_outcome"):
        return "ready"
    outcome = status.last_outcome
    return f"ready {Outcome.Result.Name(outcome.result)} {Outcome.Reason.Name(outcome.reason)} {outcome.name}"


def explained(error: grpc.RpcError, target: str) -> str:
    """Reasons are stable, and so are statuses; messages are for people, and may change."""
    info = client.error_info(error)
    if info is None:
        # The server's own code was not reached: what gRPC says is all there is.
        details = " ".join((error.details() or "").split())
        advice = "see that the server runs there, and that TLS is set alike on both sides."
        return f"{error.code().name}: {target} could not be asked ({details}): {advice}"
    match info.reason:
        case "CELL_NOT_FOUND":
            return f"{info.reason}: there is no such cell."
        case "TOKEN_EXPIRED":
            return f"{info.reason}: get another token."
        case _:
            return f"{info.reason} ({info.metadata['personium_code']})"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2] or ["demo"])
    except SettingError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
