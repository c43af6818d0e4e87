"""The files in examples/deploy, as far as they can be tested without a cluster or systemd as init."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cellexport.program.variables import unknown
from cellexport.v1.cell_export_pb2 import Outcome
from gateway.settings import Settings as GatewaySettings
from server.exporter.settings import Settings as ExporterSettings
from server.ops.drain import LONGEST_GRACE_SECONDS
from server.settings import Settings as ServerSettings
from unit import ROOT, TOKEN, Unit, accepts, eventually, needs

DEPLOY = ROOT / "examples" / "deploy"
BIN = Path(sys.executable).parent
READ: dict[str, Callable[[Mapping[str, str]], object]] = {
    "cellexport-server": ServerSettings.read,
    "cellexport-gateway": GatewaySettings.read,
    "cellexport-exporter": ExporterSettings.read,
}
UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))
SECRETS = {"store": "redis://127.0.0.1:6379/0", "master_token": TOKEN, "exporter_token": TOKEN}


def manifests() -> list[dict[str, Any]]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> Iterator[dict[str, Any]]:
    return (document for document in manifests() if document["kind"] == kind)


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod spec of each Kubernetes Deployment, by the path of the program that its pod runs."""
    specs = [document["spec"]["template"]["spec"] for document in of_kind("Deployment")]
    return {spec["containers"][0]["command"][0]: spec for spec in specs}


def variables(spec: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in spec["containers"][0]["env"]}


def number(spec: dict[str, Any], setting: str) -> float:
    return float(variables(spec).get(setting, 0))


def test_the_procfile_runs_a_unit_and_ends_it(unit: Unit) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    output = unit.directory.parent / "honcho.log"

    with output.open("wb") as log:
        honcho = subprocess.Popen(
            [BIN / "honcho", "-f", DEPLOY / "Procfile", "start"],
            env=unit.variables(PATH=path),
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: accepts(unit.http_port) and unit.http(path="/readyz", token=None).status == 200)
        probes = pods()["cellexport-gateway"]["containers"][0]
        for probe in ("readinessProbe", "livenessProbe"):
            assert unit.http(path=probes[probe]["httpGet"]["path"], token=None).status == 200
        assert unit.http("POST", body=b'{"Name":"by-procfile"}').status == 202
        unit.wait_until_ready()
        assert (unit.snapshots / "demo" / "by-procfile.zip").is_file()
        unit.add_large_file(4 * 1024)
        assert unit.http("POST").status == 202
        eventually(lambda: unit.get().exportation.progress_percent > 0)
    finally:
        honcho.send_signal(signal.SIGTERM)
        honcho.wait(20)
    assert not accepts(unit.http_port)
    assert not accepts(unit.grpc_port)
    # honcho stopped all programs at once. The server still took the exporter's last report: the export ended with the
    # reason SHUTDOWN.
    unit.start_server()

    assert unit.get().last_outcome.reason == Outcome.REASON_SHUTDOWN


@pytest.mark.process
@pytest.mark.parametrize("name", UNITS)
@needs("systemd-analyze", "systemd")
def test_systemd_has_nothing_to_say_against_its_units(tmp_path: Path, name: str) -> None:
    units = shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    for unit in units.glob("*.service"):
        # systemd-analyze checks that the programs in the unit files exist, so replace their folder by the one with this
        # machine's programs.
        unit.write_text(unit.read_text().replace("/opt/cellexport/bin", str(BIN)))

    def analyze(*words: str) -> None:
        done = subprocess.run(["systemd-analyze", *words, units / name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{name}:" not in done.stderr

    analyze("verify", "--man=no")
    # The threshold is in tenths of systemd's exposure level, which goes from 0 to 10 (no restriction at all).
    analyze("security", "--offline=true", "--threshold=20", "--no-pager")


@pytest.mark.parametrize("name", UNITS)
def test_a_systemd_unit_sets_what_its_program_reads(unit: Unit, name: str) -> None:
    for credential, content in SECRETS.items():
        (unit.directory / credential).write_text(content)
    text = (DEPLOY / "systemd" / name).read_text() + next((DEPLOY / "systemd").glob("*.d/*.conf")).read_text()
    given = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    places = {"%S/cellexport": unit.directory, "%d": unit.directory}
    for place, path in places.items():
        given = {variable: value.replace(place, str(path)) for variable, value in given.items()}
    assert unknown(given) == []
    READ[name.removesuffix(".service")](given)
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)

    assert stop
    assert int(stop[1]) > float(given.get("CELLEXPORT_DRAIN_SECONDS", 0)) + LONGEST_GRACE_SECONDS
    assert set(re.findall(r"%d/(\w+)", text)) == set(re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE))
    assert "RestartPreventExitStatus=2" in text


@pytest.mark.parametrize("program", READ)
def test_a_pod_sets_what_its_program_reads_and_asks_where_it_listens(unit: Unit, program: str) -> None:
    spec = pods()[program]
    given = variables(spec)
    assert unknown(given) == []
    mounted = [item["key"] for volume in spec.get("volumes", []) for item in volume.get("secret", {}).get("items", [])]
    for secret in mounted:
        (unit.directory / secret).write_text(SECRETS[secret])
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])}
    assert set(mounts.values()) == {volume["name"] for volume in spec.get("volumes", [])}

    for variable, value in given.items():
        if Path(value).is_absolute():
            place = next(path for path in mounts if Path(value).is_relative_to(path))
            given[variable] = value.replace(place, str(unit.directory), 1)
    READ[program](given)
    container = spec["containers"][0]
    listen = {value.rpartition(":")[2] for variable, value in given.items() if variable.endswith("_LISTEN")}
    ports = {port["name"]: str(port["containerPort"]) for port in container.get("ports", [])}
    assert set(ports.values()) == listen
    for probe in ("readinessProbe", "livenessProbe"):
        for question in container.get(probe, {}).values():
            if isinstance(question, dict):
                assert ports.get(question["port"], str(question["port"])) in listen
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    ending = number(spec, "CELLEXPORT_DRAIN_SECONDS") + LONGEST_GRACE_SECONDS + pause

    assert spec["terminationGracePeriodSeconds"] > ending


def test_the_manifests_agree_on_labels_and_names() -> None:
    templates = [document["spec"]["template"]["metadata"]["labels"] for document in of_kind("Deployment")]
    services = {document["metadata"]["name"]: document["spec"] for document in of_kind("Service")}
    selectors = [service["selector"] for service in services.values()]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of_kind("PodDisruptionBudget")]
    selectors += [deployment["spec"]["selector"]["matchLabels"] for deployment in of_kind("Deployment")]

    for policy in of_kind("NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
        selectors += [
            source["podSelector"]["matchLabels"] for rule in policy["spec"]["ingress"] for source in rule["from"]
        ]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in templates), selector
    (caller,) = of_kind("NetworkPolicy")
    allowed = caller["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    for deployment in of_kind("Deployment"):
        template = deployment["spec"]["template"]
        target = variables(template["spec"]).get("CELLEXPORT_GRPC_TARGET")
        assert (target is not None) == (allowed.items() <= template["metadata"]["labels"].items())
        if target:
            name, _, port = target.removeprefix("dns:///").partition(":")
            assert services[name]["clusterIP"] == "None"
            assert services[name]["ports"][0]["port"] == int(port)
