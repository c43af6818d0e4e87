"""The cipher of Personium's local tokens and cookies: AES-CBC with PKCS5 padding, written in base64url.

The cipher has no MAC. A caller of `open` must answer every flaw in the same way, from the first character to the last
field: otherwise an attacker uses the difference between two refusals to decrypt and forge tokens. So `Cipher.open`
takes the same path for every text, and accepts only printable ASCII. A changed block decrypts to printable ASCII once
in about seven million times.
"""

import base64
import binascii
import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher as AesCbc
from cryptography.hazmat.primitives.ciphers import algorithms, modes

_BLOCK = 16
_OLDER_PREFIX = "123456789abcdefg"
_PADDINGS = tuple(bytes([size]) * size for size in range(_BLOCK + 1))
_ALLOWED = bytes(range(0x20, 0x7F)) + b"\t"
# Decrypted in place of a malformed text, so that a malformed text takes the same time as any other.
_STAND_IN = bytes(_BLOCK)


def decode_base64url(text: str) -> bytes | None:
    """Return the bytes of an unpadded base64url text, or None if the text is not in canonical form."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if encode_base64url(data) == text else None


def encode_base64url(data: bytes) -> str:
    """Return the unpadded base64url text of bytes."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def initial_vector(name: str) -> bytes:
    """Return the initial vector for the tokens of an issuer or the cookies of a host, in today's layout."""
    return hashlib.md5(name.encode(), usedforsecurity=False).digest()


def older_initial_vector(name: str) -> bytes:
    """Return the initial vector for the tokens of an issuer or the cookies of a host, in the layout of 2017."""
    return (_OLDER_PREFIX + name)[::-1][:_BLOCK].encode("ascii", "replace")


class Cipher:
    """AES-CBC under one key.

    Args:
        key: 16, 24 or 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._aes = algorithms.AES(key)

    def open(self, text: str, vector: bytes) -> str | None:
        """Return the decrypted text, or None unless it is printable ASCII with TABs."""
        data = decode_base64url(text)
        whole = data is not None and len(data) > 0 and len(data) % _BLOCK == 0
        decryptor = AesCbc(self._aes, modes.CBC(vector)).decryptor()
        plain = decryptor.update(data if data is not None and whole else _STAND_IN) + decryptor.finalize()
        size = plain[-1]
        padded = 1 <= size <= _BLOCK and plain.endswith(_PADDINGS[size])
        inside = plain[:-size] if padded else plain
        printable = not inside.translate(None, _ALLOWED)
        return inside.decode() if whole and padded and printable else None

    def seal(self, text: str, vector: bytes) -> str:
        """Return the encrypted text, for `open` to decrypt."""
        plain = text.encode("ascii")
        padding = _PADDINGS[_BLOCK - len(plain) % _BLOCK]
        encryptor = AesCbc(self._aes, modes.CBC(vector)).encryptor()
        return encode_base64url(encryptor.update(plain + padding) + encryptor.finalize())
