"""The names of all settings, to find misspelt ones."""

from collections.abc import Iterable

_KNOWN = frozenset(
    f"CELLEXPORT_{name}"
    for name in (
        "CELL_URL",
        "CONNECTION_AGE_SECONDS",
        "CONNECTION_GRACE_SECONDS",
        "DRAIN_SECONDS",
        "EVENT_LOG",
        "EXPORTER_TOKEN",
        "EXPORTER_TOKEN_FILE",
        "GRPC_CA",
        "GRPC_CLIENT_CERT",
        "GRPC_CLIENT_KEY",
        "GRPC_LISTEN",
        "GRPC_METRICS_LISTEN",
        "GRPC_SERVER_NAME",
        "GRPC_TARGET",
        "GRPC_TLS_CERT",
        "GRPC_TLS_CLIENT_CA",
        "GRPC_TLS_KEY",
        "HTTP_LISTEN",
        "HTTP_METRICS_LISTEN",
        "HTTP_TLS_CERT",
        "HTTP_TLS_CLIENT_CA",
        "HTTP_TLS_KEY",
        "LEASE_SECONDS",
        "LOG_FORMAT",
        "MASTER_TOKEN",
        "MASTER_TOKEN_FILE",
        "PERSONIUM_VERSION",
        "PLAINTEXT",
        "QUEUE_LIMIT",
        "QUEUE_SECONDS",
        "REFLECTION",
        "STORE",
        "STORE_FILE",
        "TRACES",
        "TRUSTED_ISSUERS",
        "UNIT_DIR",
        "UNIT_SECRET",
        "UNIT_SECRET_FILE",
        "UNIT_URL",
        "WATCH_KEEPALIVE_SECONDS",
        "X_OVERRIDE",
    )
)


def unknown(names: Iterable[str]) -> list[str]:
    """Return the names that begin with `CELLEXPORT_` and that no program reads, sorted."""
    return sorted(name for name in names if name.startswith("CELLEXPORT_") and name not in _KNOWN)
