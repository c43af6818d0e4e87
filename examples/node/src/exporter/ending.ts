// The ways in which an export ends without a snapshot.
import type { _cellexport_v1_Outcome_Reason } from "../generated/cellexport/v1/Outcome.js";

export type Reason = keyof typeof _cellexport_v1_Outcome_Reason;

/** Thrown if an export ends without a snapshot. The exporter reports the reason to the server. */
export class Ended extends Error {
  readonly reason: Reason;

  constructor(reason: Reason, message: string = reason) {
    super(message);
    this.reason = reason;
  }
}

/** Thrown if this exporter no longer holds the lease. The exporter then reports no result. */
export class LeaseLost extends Error {}

/** Throws Ended or LeaseLost to stop the work. The work calls it often. */
export type Check = () => void;

/** Return the name of a system error, like ENOENT, or "" for any other error. */
export function errno(error: unknown): string {
  return error instanceof Error && "syscall" in error && "code" in error ? String(error.code) : "";
}
