"""Leases: an exporter holds a lease while it exports. Each of its reports proves that it holds it, and renews it."""

import hashlib
from dataclasses import dataclass, field, replace

from server.exports.model import Export, Phase

_Renewal = tuple[str, Phase, int, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseProof:
    """The proof that an exporter holds a lease, and the facts that restore the export if the store has lost it.

    `epoch` is the number of the lease; it rises with each claim of the cell. `accepted_at` is the start of the export,
    in milliseconds since 1970.
    """

    export_id: str
    epoch: int
    token_hash: str
    name: str = ""
    request_key: str = ""
    accepted_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedLease:
    """A lease as an exporter presents it in a call, with the lease's secret token."""

    export_id: str
    epoch: int
    token: str = field(repr=False)
    name: str
    request_key: str
    accepted_at: int

    def proof(self, holder: str) -> LeaseProof:
        """Return the proof that `holder` has this lease."""
        return LeaseProof(
            export_id=self.export_id,
            epoch=self.epoch,
            token_hash=hash_held(self.token, holder),
            name=self.name,
            request_key=self.request_key,
            accepted_at=self.accepted_at,
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """An export given to an exporter, with the secret token of its lease. The token is valid only for `holder`."""

    cell: str
    export: Export
    token: str = field(repr=False)
    holder: str

    @property
    def proof(self) -> LeaseProof:
        """Return the proof that `holder` has the lease of this export."""
        token_hash = hash_held(self.token, self.holder)
        return LeaseProof(export_id=self.export.export_id, epoch=self.export.epoch, token_hash=token_hash)


def hash_held(text: str, holder: str) -> str:
    """Return the hash of a secret text together with its holder.

    Records contain neither tokens, nor ids of claims, nor holders, only such hashes.
    """
    return hashlib.sha256(f"{len(holder)}:{holder}{text}".encode("utf-8", "replace")).hexdigest()


def renew(export: Export, sequence: int) -> Export:
    """Return the export with its lease renewed by the report with the number `sequence`."""
    return replace(export, sequence=sequence)


def renewal(export: Export) -> _Renewal:
    """Return a value that changes whenever the lease is given, renewed or taken away. `expiry` then counts again."""
    return export.export_id, export.phase, export.epoch, export.token_hash, export.sequence
