"""The application log: each record is one line, and no content of a record moves the cursor."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellexport.program.logs import JsonFormatter, TextFormatter, marked


def record(message: str, **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"msg": message, "levelname": "INFO", "name": "test", "created": 1486976400.0} | fields
    )


def test_a_json_line_has_a_member_for_each_field() -> None:
    line = json.loads(JsonFormatter().format(record("event", cell="demo")))
    assert line == {
        "time": "2017-02-13T09:00:00.000Z",
        "level": "info",
        "logger": "test",
        "message": "event",
        "cell": "demo",
    }


def test_a_readable_line_has_the_fields_too() -> None:
    assert TextFormatter().format(record("event", cell="demo")) == "info    event cell=demo"


def test_a_line_has_the_fields_of_its_call_and_its_own_win() -> None:
    with marked(request_key="one", trace_id="two"), marked(trace_id="three"):
        line = json.loads(JsonFormatter().format(record("event", request_key="mine")))
    assert (line["request_key"], line["trace_id"]) == ("mine", "three")
    assert "trace_id" not in json.loads(JsonFormatter().format(record("event")))


@pytest.mark.process
def test_warnings_and_errors_that_nobody_caught_are_lines_too() -> None:
    program = """
import threading, warnings
from cellexport.program import logs
from cellexport.environment import Environment
logs.configure(Environment({}), terminal=False)
warnings.warn("of a library")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Odd:
    def __del__(self):
        1 / 0
Odd()
1 / 0
"""

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]

    assert ended.returncode == 1
    assert [line["level"] for line in lines] == ["warning", "error", "error", "error"]
    assert all("ZeroDivisionError" in line["trace"] for line in lines[1:])


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@given(text=st.text(alphabet=st.characters(codec=None), max_size=300))
def test_nothing_makes_a_second_line_or_moves_the_cursor(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record("event", value=text))
    assert line.isprintable()
    line.encode()
    assert len(line) < 200 * 12 + 200
