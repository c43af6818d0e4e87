// What the server says of an error, and whether trying again makes sense.
import * as grpc from "@grpc/grpc-js";
import { ErrorInfo, RetryInfo, Status } from "./contract.js";
import { target } from "./settings.js";

const DOMAIN = "cellexport";

/** What a call that failed is about. Branch on `reason`, never on the message. */
export interface Failure {
  code: grpc.status;
  /** The name of a value of ErrorReason; "" where it was not the server's own code that refused the call. */
  reason: string;
  /** How long the server asks to wait before another try. */
  retryAfterMs: number;
  /** What the server says of it, or else gRPC. */
  details: string;
}

/** What is known of an error that a call ended with. Any other error is thrown again. */
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

/** A short name for it, for logs: the reason, or the status where there is none. */
export function why({ code, reason }: Failure): string {
  return reason || (grpc.status[code] ?? String(code));
}

/** For people: in the server's words, or where its own code was not reached, at which address, and in gRPC's. */
export function explanation(failed: Failure): string {
  if (failed.reason) return `${failed.reason}: ${failed.details}`;
  const advice = "see that the server runs there, and that TLS is set alike on both sides.";
  return `${why(failed)}: ${target()} could not be asked (${failed.details}): ${advice}`;
}

/** What went wrong, without what each layer of gRPC wraps around it. */
function innermost(details: string): string {
  return details.replace(/^.*Last error: (Error: )?|\.? Resolution note: .*$/gs, "").replace(/\s+/g, " ").trim();
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && typeof (error as Partial<grpc.ServiceError>).code === "number" && "details" in error;
}
