"""The unit master token: a configured secret that gives every privilege on every cell."""

import hashlib
import hmac

from cellexport.environment import Secret
from server.auth.credentials import Credentials
from server.auth.rights import ALL, NONE, Accepted
from server.cells import Cell
from server.exports.model import Caller


class MasterToken:
    """The `TokenKind` of the unit master token. A call with `x-personium-unit-user` gives up the token's privileges."""

    def __init__(self, secret: Secret) -> None:
        self._digest = _digest(secret.reveal())

    def version(self) -> int:
        """Return 0: the secret doesn't change while the server runs."""
        return 0

    def accept(self, token: str, credentials: Credentials, cell: Cell | None, now: int) -> Accepted | None:
        # Compare digests, so that the time reveals neither the length nor the content of the secret.
        if not hmac.compare_digest(_digest(token), self._digest):
            return None
        if credentials.unit_user:
            return Accepted(caller=Caller(subject=credentials.unit_user), privileges=NONE)
        return Accepted(caller=Caller(), holder="master", privileges=ALL, for_unit=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
