"""The request key, under which logs show a request: `X-Personium-RequestKey`, the same over HTTP and gRPC."""

import re
import uuid
from base64 import urlsafe_b64encode

HEADER = "X-Personium-RequestKey"
METADATA = HEADER.lower()

_VALID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


def is_valid(key: str) -> bool:
    """Return whether the key is 1 to 128 of `A-Z a-z 0-9 _ -`. Callers treat an empty key as absent."""
    return _VALID.fullmatch(key) is not None


def generate() -> str:
    """Return a new key for a request without one: the 22 base64url characters of a random UUID, as `{4}_{18}`."""
    text = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return f"{text[:4]}_{text[4:]}"
