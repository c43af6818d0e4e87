"""Turns traces on: reads `CELLEXPORT_TRACES`, and opens the spans of a program."""

from cellexport.environment import Environment, SettingError
from cellexport.program.tracing import Spans


def are_on(environment: Environment) -> bool:
    """Whether traces are wanted (`CELLEXPORT_TRACES`).

    Raises:
        SettingError: if they are, and can't be had.
    """
    if environment.choice("CELLEXPORT_TRACES", "off", "on") == "off":
        return False
    # The one protocol that we bring along.
    environment.choice("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    environment.choice("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    try:
        import cellexport.program.spans
    except ImportError as error:
        raise SettingError(
            "CELLEXPORT_TRACES: OpenTelemetry is not installed. Install cellexport with its extra otel, or say off."
        ) from error
    return bool(cellexport.program.spans)


def open_spans(program: str, *, on: bool) -> Spans | None:
    """The spans of a program, sent where the variables `OTEL_…` say; None if traces are off.

    Args:
        program: the service's name, where `OTEL_SERVICE_NAME` says no other.
    """
    if not on:
        return None
    from cellexport.program.spans import RecordedSpans

    return RecordedSpans.to_collector(program)
