"""Conversion of file names, which may be any bytes that a file system allows, to names of zip entries."""

import os
import re
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.exporter.names import entry_name, is_safe

component = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
# File names whose conversion is most likely to go wrong. They would be rare among random names.
tricky = st.lists(
    st.sampled_from([b"%", b"%4", b"%41", b"A", b"\\", b"..", b".", b" ", b":", b"\xff", b"\n", b"c:", b"\xc3\xa9"]),
    min_size=1,
    max_size=6,
).map(b"".join)
names = st.one_of(component, tricky.filter(lambda name: name not in (b".", b"..")))


def entry(name: bytes) -> str:
    return entry_name(os.fsdecode(name))


@pytest.mark.fault("F62")
@given(names, names)
def test_two_names_never_become_one(one: bytes, other: bytes) -> None:
    assert (entry(one) == entry(other)) == (one == other)


@pytest.mark.fault("F62")
@given(names)
def test_the_old_name_can_be_had_back(name: bytes) -> None:
    assert unquote_to_bytes(entry(name)) == name or re.search(rb"%(?![0-9A-Fa-f]{2})", name)


@pytest.mark.fault("F61")
@given(st.lists(names, min_size=1, max_size=5))
def test_an_entry_unpacks_nowhere_but_below_its_directory(parts: list[bytes]) -> None:
    name = entry_name(os.fsdecode(b"/".join(parts)))

    assert name.encode().decode() == name
    assert not re.search(r"[\x00-\x1f\x7f\\]", name)
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        assert not flavour.is_absolute()
        assert not flavour.anchor
        assert ".." not in flavour.parts
    assert all(part.strip(" .") or part == "" for part in name.split("/"))
    assert is_safe(name)
    assert is_safe(name + "/")
