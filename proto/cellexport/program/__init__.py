"""Code that the three programs share, and that callers don't need.

- `listening`: the address and TLS of a port. `unit_urls`: the URLs of the unit and its cells.
- `logs`: the application log. `variables`: the names of all settings.
- `tracing`, `traces` and `spans`: `traceparent`, and spans where OpenTelemetry is installed.
- `metrics_server`: the HTTP port that serves metrics.

This folder may import `cellexport`.
"""
