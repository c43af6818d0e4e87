"""The application log: whatever goes in, a record is one line, and nothing in it moves the cursor."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellexport.logs import JsonFormatter, TextFormatter


def record(message: str, **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"msg": message, "levelname": "INFO", "name": "test", "created": 1486976400.0} | fields
    )


def test_a_json_line_has_a_member_for_each_field() -> None:
    line = json.loads(JsonFormatter().format(record("told", cell="demo")))
    assert line == {
        "time": "2017-02-13T09:00:00.000Z",
        "level": "info",
        "logger": "test",
        "message": "told",
        "cell": "demo",
    }


def test_a_readable_line_has_the_fields_too() -> None:
    assert TextFormatter().format(record("told", cell="demo")) == "info    told cell=demo"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@given(text=st.text(alphabet=st.characters(codec=None), max_size=300))
def test_nothing_makes_a_second_line_or_moves_the_cursor(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record("told", value=text))
    assert line.isprintable()
    line.encode()
    assert len(line) < 200 * 12 + 200
