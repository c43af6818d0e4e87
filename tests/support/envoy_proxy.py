"""Envoy, run on the configuration in examples/envoy. The tests change its ports and files, and nothing else."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from certificates import Authority
from unit import ROOT, eventually, free_port

CONFIGURATION = ROOT / "examples" / "envoy" / "envoy.yaml"


def configuration() -> dict[str, Any]:
    return dict(yaml.safe_load(CONFIGURATION.read_text()))


@dataclass(frozen=True)
class Envoy:
    """A running Envoy: its port for calls, the port of its admin interface, and its process."""

    port: int
    admin: int
    process: subprocess.Popen[bytes]

    def ask(self, path: str) -> Any:
        """Send a request to Envoy's admin interface, and return the JSON of the response."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
            return json.load(answer)

    def stats(self, prefix: str) -> dict[str, int]:
        """Return Envoy's counters and gauges whose names have this prefix, by the rest of the name."""
        found = self.ask(f"/stats?format=json&filter=^{prefix}")["stats"]
        return {stat["name"].removeprefix(prefix): stat["value"] for stat in found if "value" in stat}

    def given_calls(self) -> set[int]:
        """Return the ports of the servers that Envoy sends calls to: healthy, not ejected for broken connections."""
        (cluster,) = self.ask("/clusters?format=json")["cluster_statuses"]
        return {
            host["address"]["socket_address"]["port_value"]
            for host in cluster["host_statuses"]
            if not any(
                host["health_status"].get(f"failed_{check}") for check in ("active_health_check", "outlier_check")
            )
        }


@contextmanager
def running(directory: Path, servers: list[int], authority: Authority) -> Iterator[Envoy]:
    """Run Envoy in front of servers on these two ports. Envoy serves calls when the context opens.

    Envoy presents a certificate that the authority issued to it.
    """
    authority.issue("envoy")
    port, admin = free_port(), free_port()
    text = CONFIGURATION.read_text()
    for written, chosen in ((9901, admin), (50050, port), (50051, servers[0]), (50052, servers[1])):
        assert text.count(f"port_value: {written} ") == 1
        text = text.replace(f"port_value: {written} ", f"port_value: {chosen} ")
    text = text.replace("/etc/cellexport/ca.pem", str(authority.file))
    file = directory / "envoy.yaml"
    file.write_text(text.replace("/etc/cellexport", str(authority.file.parent)))
    command = [str(Path(sys.executable).parent / "envoy"), "-c", str(file), "--disable-hot-restart"]
    with (directory / "envoy.log").open("wb") as log:
        process = subprocess.Popen([*command, "--concurrency", "2", "--log-level", "warning"], stdout=log, stderr=log)
    envoy = Envoy(port, admin, process)
    try:
        eventually(lambda: _is_ready(envoy))
        yield envoy
    finally:
        process.kill()
        process.wait(10)


def _is_ready(envoy: Envoy) -> bool:
    assert envoy.process.poll() is None
    try:
        return bool(envoy.stats("server.live")[""])
    except OSError:
        return False
