"""The names of gRPC metadata, and the domain of ErrorInfo, for callers and the server."""

UNIT_USER = "x-personium-unit-user"
AUTHORIZATION = "authorization"
COOKIE = "p-cookie"
COOKIE_PEER = "p-cookie-peer"
DOMAIN = "cellexport"
