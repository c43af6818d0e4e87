// How an export ends that leaves no snapshot.
import type { _cellexport_v1_Outcome_Reason } from "../generated/cellexport/v1/Outcome.js";

export type Reason = keyof typeof _cellexport_v1_Outcome_Reason;

/** Thrown where an export ends without a snapshot: the server is to be told the reason. */
export class Ended extends Error {
  readonly reason: Reason;

  constructor(reason: Reason, message: string = reason) {
    super(message);
    this.reason = reason;
  }
}

/** Thrown where the export is not ours any more: nobody is to be told anything. */
export class LeaseLost extends Error {}

/** Throws to end the work: Ended or LeaseLost. Called often. */
export type Check = () => void;

/** The system's name for what went wrong, or "" if it was none of the system's errors. */
export function errno(error: unknown): string {
  return error instanceof Error && "syscall" in error && "code" in error ? String(error.code) : "";
}
