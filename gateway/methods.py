"""The HTTP methods of the REST facade."""

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
ALLOW = ", ".join(METHODS)
# The operational paths only answer questions.
PROBE_PATHS = ("/livez", "/readyz")
PROBE_ALLOW = "GET, HEAD, OPTIONS"
