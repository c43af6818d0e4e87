"""The outcomes of exports, by the names of the contract without their prefixes (cellexport/v1/cell_export.proto)."""

# The reasons of an interrupted export. Each other reason is the reason of a failed export.
INTERRUPTIONS = frozenset({"LEASE_EXPIRED", "SHUTDOWN", "QUEUE_TIMEOUT", "CANCELLED"})
