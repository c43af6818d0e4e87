"""Print the status of a cell's export, then watch it until no export is in progress.

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
        """Return the credentials. Called for each attempt: the token in TOKEN_FILE may have been replaced."""
        return client.bearer(secret.latest().reveal())

    target = client.target(environment)
    with client.channel(target, client.tls(environment)) as channel:
        try:
            status = get(channel, cell, token())
            print(status.revision, shown(status), flush=True)
            after = status.revision
            for message in watching.watch(channel, cell, token, after_revision=after, until_ready=True):
                # A message without a status means that the last status is still true.
                if message.HasField("cell_export"):
                    print(message.revision, shown(message.cell_export), flush=True)
        except grpc.RpcError as error:
            sys.exit(explained(error, target))


def get(channel: grpc.Channel, cell: str, token: client.Metadata) -> CellExport:
    """Return the current status. Without a timeout the call could wait for ever."""
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
    """Return a sentence about an error. Branch on reasons and statuses, which are stable; messages may change."""
    info = client.error_info(error)
    if info is None:
        # The error is not from the server's own code, so only gRPC's details are known.
        details = " ".join((error.details() or "").split())
        advice = "check that the server runs there, and that TLS is set alike on both sides."
        return f"{error.code().name}: call to {target} failed ({details}): {advice}"
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
