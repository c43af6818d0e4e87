// The errors of calls: their reasons, and how long to wait before a retry.
import * as grpc from "@grpc/grpc-js";
import { ErrorInfo, RetryInfo, Status } from "./contract.js";
import { target } from "./settings.js";

const DOMAIN = "cellexport";

/** The error of a failed call. Branch on `reason`, never on the message. */
export interface Failure {
  code: grpc.status;
  /** The name of a value of ErrorReason; "" if the server's own code did not refuse the call. */
  reason: string;
  /** The pause before a retry that the server asks for, or 0. */
  retryAfterMs: number;
  /** The message from the server, or else from gRPC. */
  details: string;
}

/** Return the failure of a call. Throw any other error again. */
export function failure(error: unknown): Failure {
  if (!isServiceError(error)) throw error;
  const found: Failure = { code: error.code, reason: "", retryAfterMs: 0, details: innermost(error.details) };
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!Buffer.isBuffer(packed)) return found;
  for (const detail of Status.deserialize(packed).details) {
    const type = detail.type_url.slice(detail.type_url.lastIndexOf("/") + 1);
    if (type === "google.rpc.ErrorInfo") {
      const info = ErrorInfo.deserialize(detail.value);
      if (info.domain === DOMAIN) found.reason = info.reason;
    } else if (type === "google.rpc.RetryInfo") {
      const { retryDelay } = RetryInfo.deserialize(detail.value);
      if (retryDelay) found.retryAfterMs = Number(retryDelay.seconds) * 1000 + retryDelay.nanos / 1e6;
    }
  }
  return found;
}

/** Return a short name for logs: the reason, or the status if there is no reason. */
export function why({ code, reason }: Failure): string {
  return reason || (grpc.status[code] ?? String(code));
}

/** Return a sentence for humans: the server's message, or else the address and gRPC's message. */
export function explanation(failed: Failure): string {
  if (failed.reason) return `${failed.reason}: ${failed.details}`;
  const advice = "check that the server runs there, and that TLS is set alike on both sides.";
  return `${why(failed)}: call to ${target()} failed (${failed.details}): ${advice}`;
}

/** Return gRPC's innermost message, without the text that its layers add around it. */
function innermost(details: string): string {
  return details.replace(/^.*Last error: (Error: )?|\.? Resolution note: .*$/gs, "").replace(/\s+/g, " ").trim();
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && typeof (error as Partial<grpc.ServiceError>).code === "number" && "details" in error;
}
