"""The table of faults in docs/reliability.md agrees with the tests."""

import re

from unit import ROOT

MARK = re.compile(r"mark\.fault\(([^)]*)\)")


def marked() -> dict[str, set[str]]:
    """Return the names of the test files that are marked with each fault, by fault."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").glob("test_*.py"):
        for names in MARK.findall(path.read_text()):
            for name in re.findall(r'"(F\d+)"', names):
                found.setdefault(name, set()).add(path.stem)
    return found


def documented() -> dict[str, set[str]]:
    """Return the names of the test files in docs/reliability.md for each fault, by fault."""
    rows = re.findall(r"^\| (F\d+) \|.*$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    text = (ROOT / "docs" / "reliability.md").read_text()
    lines = {name: re.search(rf"^\| {name} \|.*$", text, re.MULTILINE) for name in rows}
    return {name: set(re.findall(r"`(test_\w+)`", line[0])) for name, line in lines.items() if line}


def test_every_fault_in_the_table_has_the_tests_that_it_names() -> None:
    tested, table = marked(), documented()
    assert tested.keys() == table.keys()
    assert {name: files - tested[name] for name, files in table.items() if files - tested[name]} == {}
