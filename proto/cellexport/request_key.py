"""The key under which a request is found in the logs: `X-Personium-RequestKey`, the same at both doors."""

import re
import uuid
from base64 import urlsafe_b64encode

HEADER = "X-Personium-RequestKey"
METADATA = HEADER.lower()

_VALID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


def is_valid(key: str) -> bool:
    """Whether it is at most 128 of `A-Z a-z 0-9 _ -`. The empty key counts as absent, and is not valid."""
    return _VALID.fullmatch(key) is not None


def generate() -> str:
    """A key for a request that came without one: the 22 base64url characters of a random UUID, as `{4}_{18}`."""
    text = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return f"{text[:4]}_{text[4:]}"
