"""Transitions of records, for any record and lease: a lease restores only lost exports, and epochs only rise."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records import following, full, idle
from server.exports import transitions
from server.exports.lease import LeaseProof
from server.exports.model import CellRecord, Phase, Progress, Trust
from server.refusals import Refused

FLOOR = 1000
EPOCHS = st.integers(min_value=-1, max_value=2 * FLOOR)


@st.composite
def records(draw: st.DrawFn) -> CellRecord:
    """Draw a record, of any trust, of a cell without an export or with a queued, a claimed or an ended one."""
    nothing = CellRecord(cell="demo", revision=FLOOR)
    record = draw(st.sampled_from([nothing, following(nothing), full(nothing), idle(nothing)]))
    trust = draw(st.sampled_from(Trust))
    return replace(record, trust=trust, revision=FLOOR if trust is Trust.DOUBTFUL else FLOOR + 1)


@st.composite
def leases(draw: st.DrawFn) -> LeaseProof:
    export_id = draw(st.sampled_from(["0" * 32, "ab12", "cd34"]))
    name = draw(st.sampled_from(["snap", "", "../x"]))
    return LeaseProof(
        export_id=export_id,
        epoch=draw(EPOCHS),
        token_hash="hash",
        name=name,
        request_key="key",
        accepted_at=draw(st.sampled_from([0, 5])),
    )


@given(records(), leases())
def test_a_lease_restores_only_what_was_forgotten_and_is_newer_than_all_that_was_not(
    record: CellRecord, lease: LeaseProof
) -> None:
    restored = transitions.restore(record, lease)
    if restored is None:
        return

    assert record.trust is not Trust.SURE
    assert record.epoch < lease.epoch < record.revision
    assert restored.export is not None
    assert (restored.export.phase, restored.export.epoch, restored.epoch) == (Phase.CLAIMED, lease.epoch, lease.epoch)
    assert (restored.export.name, restored.export.accepted_at) == ("snap", 5)

    advanced = transitions.report(restored, lease, 7, Progress(work_done=1, work_total=2))
    assert advanced is not None
    assert advanced.export is not None
    assert advanced.export.percent == 50


@given(records(), leases())
def test_a_trusted_record_is_changed_only_by_the_lease_holder(record: CellRecord, lease: LeaseProof) -> None:
    record = replace(record, trust=Trust.SURE)
    held = record.export is not None and (record.export.export_id, record.export.epoch, record.export.phase) == (
        lease.export_id,
        lease.epoch,
        Phase.CLAIMED,
    )

    assert transitions.restore(record, lease) is None
    if not held:
        with pytest.raises(Refused):
            transitions.report(record, lease, 7, Progress())


@given(records(), leases())
def test_a_claim_has_an_epoch_above_any_that_there_was(record: CellRecord, lease: LeaseProof) -> None:
    record = transitions.restore(record, lease) or record
    waiting = replace(following(record), epoch=record.epoch)
    claimed = transitions.claim(waiting, "ab12", "request", "hash")
    assert claimed is not None
    assert claimed.epoch == waiting.revision + 1
    assert claimed.epoch > max(record.epoch, record.revision)
