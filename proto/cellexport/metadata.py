"""The names of gRPC metadata and of the error domain, the same for every caller and the server."""

UNIT_USER = "x-personium-unit-user"
AUTHORIZATION = "authorization"
COOKIE = "p-cookie"
COOKIE_PEER = "p-cookie-peer"
DOMAIN = "cellexport"
