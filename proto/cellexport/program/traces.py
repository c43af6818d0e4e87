"""Turns traces on: reads `CELLEXPORT_TRACES`, and opens the spans of a program."""

from cellexport.environment import Environment, SettingError
from cellexport.program.tracing import Spans


def are_on(environment: Environment) -> bool:
    """Return whether traces are on (`CELLEXPORT_TRACES`).

    Raises:
        SettingError: if traces are on, but OpenTelemetry is missing or its protocol isn't gRPC.
    """
    if environment.choice("CELLEXPORT_TRACES", "off", "on") == "off":
        return False
    # The extra `otel` installs the exporter for gRPC only.
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
    """Return the maker of a program's spans, which sends them to the collector that the variables `OTEL_…` name.

    Return None if traces are off.

    Args:
        program: the name of the service in the traces, unless `OTEL_SERVICE_NAME` is set.
    """
    if not on:
        return None
    from cellexport.program.spans import RecordedSpans

    return RecordedSpans.to_collector(program)
