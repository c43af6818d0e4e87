// The lease on an export: reports renew it while the work goes on.
import { randomInt } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { status as codes } from "@grpc/grpc-js";
import { answer, bearer, within } from "../connection.js";
import { explanation, type Failure, failure, why } from "../errors.js";
import type { ClaimedExport__Output } from "../generated/cellexport/v1/ClaimedExport.js";
import type { ExporterServiceClient } from "../generated/cellexport/v1/ExporterService.js";
import type { ReportProgressResponse__Output } from "../generated/cellexport/v1/ReportProgressResponse.js";
import { type Check, Ended, LeaseLost } from "./ending.js";
import { log } from "./log.js";
import type { Tally } from "./tally.js";

const PASSING: ReadonlySet<codes> = new Set([
  codes.UNAVAILABLE,
  codes.DEADLINE_EXCEEDED,
  codes.RESOURCE_EXHAUSTED,
  codes.CANCELLED,
  codes.INTERNAL,
  codes.UNKNOWN,
]);

/** Return whether a retry of the failed call may succeed. Without a retry the lease will expire. */
export function isPassing({ code, reason }: Failure): boolean {
  // A service mesh may replace an expired token in its file. Each call reads the file, so a retry may succeed.
  return PASSING.has(code) || (reason === "TOKEN_EXPIRED" && Boolean(process.env.CELLEXPORT_EXPORTER_TOKEN_FILE));
}

/** Return the exporter's credentials. */
export function token() {
  return bearer("CELLEXPORT_EXPORTER_TOKEN", "CELLEXPORT_MASTER_TOKEN");
}

/** Wait a quarter to three quarters of a second, at random, so that exporters don't call all at once. */
export async function breathe(): Promise<void> {
  await pause(randomInt(250, 750));
}

export class Lease {
  readonly #service: ExporterServiceClient;
  readonly #claimed: ClaimedExport__Output;
  readonly #tally: Tally;
  readonly #seconds: number;
  readonly #over = new AbortController();
  #sequence = 0;
  #isReported = true;
  #isLost = false;
  #isCancelled = false;

  constructor(service: ExporterServiceClient, claimed: ClaimedExport__Output, tally: Tally) {
    this.#service = service;
    this.#claimed = claimed;
    this.#tally = tally;
    this.#seconds = Number(claimed.leaseDuration?.seconds) + (claimed.leaseDuration?.nanos ?? 0) / 1e9;
  }

  /** Send reports until the work has ended. Return its result. */
  async during<T>(work: Promise<T>): Promise<T> {
    const beating = this.#beat().catch((error: unknown) => {
      // Without reports the lease will expire. Stop the work now.
      log("error", "progress reports stopped by an unexpected error", { error: String(error) });
      this.#isLost = true;
    });
    try {
      return await work;
    } finally {
      this.#over.abort();
      await beating;
    }
  }

  /** Throw LeaseLost if the lease is lost, or Ended if the server asked this exporter to stop. */
  check(): void {
    if (this.#isLost) throw new LeaseLost("The lease is lost.");
    if (this.#isCancelled) throw new Ended("REASON_CANCELLED");
  }

  /** Wait until a report succeeds. Call it before publishing: only the holder of the lease may publish. */
  async confirm(check: Check): Promise<void> {
    while (!(await this.#report())) {
      check();
      await breathe();
    }
    check();
  }

  async #beat(): Promise<void> {
    const { signal } = this.#over;
    while (!signal.aborted && !this.#isLost) {
      // With three reports in a lease, two may be lost without losing the lease.
      if (await this.#report()) await pause((this.#seconds * 1000) / 3, null, { signal }).catch(() => null);
      else await breathe();
    }
  }

  /** Send one report. Return whether it succeeded. */
  async #report(): Promise<boolean> {
    if (this.#isLost) return false;
    this.#sequence += 1;
    const { cell, lease } = this.#claimed;
    const request = { cell, lease, sequence: this.#sequence, progress: this.#tally.progress() };
    const limit = within(Math.max(1, this.#seconds / 3));
    try {
      const { cancelRequested } = await answer<ReportProgressResponse__Output>((done) =>
        this.#service.ReportProgress(request, token(), limit, done),
      );
      this.#isCancelled ||= cancelRequested;
      this.#isReported = true;
      return true;
    } catch (error) {
      const failed = failure(error);
      // A refusal is usually LEASE_LOST. Further work on the export would be useless.
      this.#isLost ||= !isPassing(failed);
      // Log only the first failure of an outage.
      if (this.#isLost) log("warning", "lease lost", { reason: why(failed) });
      else if (this.#isReported) log("warning", "progress reports fail; retrying", { reason: explanation(failed) });
      this.#isReported = false;
      return false;
    }
  }
}
