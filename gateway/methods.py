"""The HTTP methods of the REST facade."""

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
ALLOW = ", ".join(METHODS)
# The paths of the two probes. They change nothing, so they have no POST.
PROBE_PATHS = ("/livez", "/readyz")
PROBE_ALLOW = "GET, HEAD, OPTIONS"
