"""The application log: one JSON object a line, or a readable line on a terminal.

Nothing that a caller sends can make a second line, or reach the terminal as a control character.
"""

import json
import logging
import logging.config
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from cellexport.environment import Environment
from cellexport.program import variables

# The longest value of a field in the log, in characters. The log cuts longer values.
CLIENT_TEXT_LIMIT = 200

_log = logging.getLogger(__name__)

# The fields of the current call. Each log line of the call gets them.
_CALL: ContextVar[Mapping[str, str]] = ContextVar("call", default=MappingProxyType({}))

# The attributes that every log record has. All other attributes are fields of the line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def configure(environment: Environment, *, terminal: bool) -> dict[str, Any]:
    """Set up the log on standard error. Return its configuration, for libraries that set up their own log.

    Args:
        environment: where `CELLEXPORT_LOG_FORMAT` says `json` or `text`; `auto` is `text` on a terminal.
        terminal: whether standard error is a terminal.
    """
    choice = environment.choice("CELLEXPORT_LOG_FORMAT", "auto", "json", "text")
    formatter = TextFormatter if choice == "text" or (choice == "auto" and terminal) else JsonFormatter
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{formatter.__module__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
        # grpc's own log is off: it shows metadata that grpc can't decode, and metadata contains tokens. The server logs
        # refused calls itself.
        "loggers": {"grpc": {"level": logging.CRITICAL + 1}},
    }
    logging.config.dictConfig(config)
    capture()
    for name in variables.unknown(environment.names()):
        _log.warning("unknown setting; check the spelling", extra={"setting": name})
    return config


def capture() -> None:
    """Log Python's warnings and uncaught exceptions, instead of printing them."""
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _log_uncaught(kind, error)
    sys.unraisablehook = lambda uncaught: _log_uncaught(uncaught.exc_type, uncaught.exc_value)
    threading.excepthook = lambda uncaught: _log_uncaught(uncaught.exc_type, uncaught.exc_value)


def _log_uncaught(kind: type[BaseException], error: BaseException | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    _log.error("uncaught exception", exc_info=error or kind())


def mark(**call: str) -> Token[Mapping[str, str]]:
    """Add fields to every further log line of this task or thread."""
    return _CALL.set({**_CALL.get(), **call})


@contextmanager
def marked(**call: str) -> Iterator[None]:
    """Add fields to every log line of this task or thread while the context is open."""
    token = mark(**call)
    try:
        yield
    finally:
        _CALL.reset(token)


def is_terminal() -> bool:
    return sys.stderr.isatty()


def fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a log line: the `extra` of its record, and the fields of the current call."""
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return {**_CALL.get(), **given}


class JsonFormatter(logging.Formatter):
    """Formats a log record as a JSON object: time, level, logger, message, then each field."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: _bounded(value) for key, value in fields(record).items()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Formats a log record as a readable line: level, message, fields as `key=value`; then a stack trace, if any."""

    def format(self, record: logging.LogRecord) -> str:
        words = [f"{record.levelname.lower():7}", visible(record.getMessage())]
        words += [f"{key}={visible(str(_bounded(value)))}" for key, value in fields(record).items()]
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bounded(value: object) -> object:
    return value[:CLIENT_TEXT_LIMIT] if isinstance(value, str) else value


def visible(text: str) -> str:
    """Return the text with control and invisible characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
