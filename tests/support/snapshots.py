"""A check that a snapshot is complete. It uses only Python's zipfile and the documented layout."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

_STEMS = (
    "10_box 11_account 12_extcell 20_role 21_rule 22_relation 23_sentmessage 24_receivedmessage 30_extrole "
    "40_entitytype 41_complextype 50_property 51_complextypeproperty 60_associationend 70_userdata 80_link"
)
ODATA = {"10_odata/00_cell.json", *(f"10_odata/{stem}.pjson" for stem in _STEMS.split(" "))}


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the manifest and the list of entries of a snapshot, after asserting that the snapshot agrees with both."""
    with zipfile.ZipFile(path) as snapshot:
        manifest = json.loads(snapshot.read("00_manifest.json"))
        text = snapshot.read("00_entries.ndjson")
        assert hashlib.sha256(text).hexdigest() == manifest["entries_sha256"]
        lines = [json.loads(line) for line in text.splitlines()]
        listed = [line for line in lines if "skipped" not in line]
        assert len(listed) == manifest["entry_count"]
        assert sum(line["size"] for line in listed) == manifest["bytes"]
        names = snapshot.namelist()
        assert len(set(names)) == len(names)
        assert sorted(names) == sorted([*(line["name"] for line in listed), "00_manifest.json", "00_entries.ndjson"])
        for line in listed:
            digest = hashlib.sha256()
            # Reading a member to its end also checks its CRC.
            with snapshot.open(line["name"]) as member:
                while chunk := member.read(1024 * 1024):
                    digest.update(chunk)
            assert digest.hexdigest() == line["sha256"]
            assert snapshot.getinfo(line["name"]).file_size == line["size"]
        assert set(names) >= ODATA
    return manifest, lines
