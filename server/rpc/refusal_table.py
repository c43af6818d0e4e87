"""The gRPC status of each refusal."""

from collections.abc import Mapping

import grpc

from server.refusals import Refusal

# A client that is refused with a retryable reason should wait at least this long, and at most twice as long.
RETRY_SECONDS = 1

STATUS: Mapping[Refusal, grpc.StatusCode] = {
    Refusal.REQUEST_KEY_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.CREDENTIALS_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.SCHEME_UNKNOWN: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.BASIC_MALFORMED: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.TOKEN_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.TOKEN_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.REFRESH_TOKEN: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.SIGNATURE_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.COOKIE_REJECTED: grpc.StatusCode.UNAUTHENTICATED,
    Refusal.PRIVILEGE_LACKING: grpc.StatusCode.PERMISSION_DENIED,
    Refusal.SCOPE_INSUFFICIENT: grpc.StatusCode.PERMISSION_DENIED,
    Refusal.CELL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Refusal.NAME_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.CLAIM_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.PROGRESS_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.OUTCOME_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.ALREADY_EXPORTING: grpc.StatusCode.FAILED_PRECONDITION,
    Refusal.SNAPSHOT_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.NO_SPACE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.NOT_EXPORTING: grpc.StatusCode.FAILED_PRECONDITION,
    Refusal.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.TOO_MANY_WATCHES: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.BATCH_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.REVISION_UNKNOWN: grpc.StatusCode.OUT_OF_RANGE,
    Refusal.EXPORT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Refusal.LEASE_NOT_HELD: grpc.StatusCode.PERMISSION_DENIED,
    Refusal.LEASE_LOST: grpc.StatusCode.ABORTED,
    Refusal.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Refusal.SERVER_SHUTDOWN: grpc.StatusCode.UNAVAILABLE,
    Refusal.DEADLINE_PASSED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Refusal.DATA_DAMAGED: grpc.StatusCode.DATA_LOSS,
    Refusal.UNEXPECTED: grpc.StatusCode.INTERNAL,
}
