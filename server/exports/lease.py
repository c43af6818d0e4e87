"""What a lease is, and how an exporter proves that it holds one."""

import hashlib
from dataclasses import dataclass, field

from server.exports.model import Export


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseProof:
    """What an exporter presents with each report: which lease it has, and what to restore the export from."""

    export_id: str
    epoch: int
    token_hash: str
    name: str = ""
    request_key: str = ""
    accepted_at: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """An export given to an exporter, and the secret of the lease, which is good in its holder's hands only."""

    cell: str
    export: Export
    token: str = field(repr=False)
    holder: str

    @property
    def proof(self) -> LeaseProof:
        token_hash = hash_held(self.token, self.holder)
        return LeaseProof(export_id=self.export.export_id, epoch=self.export.epoch, token_hash=token_hash)


def hash_held(text: str, holder: str) -> str:
    """What to compare with the record, which holds no token, no id of a claim and no holder, but hashes."""
    return hashlib.sha256(f"{len(holder)}:{holder}{text}".encode("utf-8", "replace")).hexdigest()
