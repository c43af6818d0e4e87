// Holds the lease on an export: reports how far it is, however long the work takes.
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

/** Whether the same call may be answered yet. If not, there is nothing to wait for: the lease runs out. */
export function isPassing({ code, reason }: Failure): boolean {
  // A token that has ended may be followed by another in its file.
  return PASSING.has(code) || (reason === "TOKEN_EXPIRED" && Boolean(process.env.CELLEXPORT_EXPORTER_TOKEN_FILE));
}

/** What an exporter presents. */
export function token() {
  return bearer("CELLEXPORT_EXPORTER_TOKEN", "CELLEXPORT_MASTER_TOKEN");
}

/** Waits for half a second, more or less, so that exporters don't come all at once. */
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
  #isHeard = true;
  #isLost = false;
  #isCancelled = false;

  constructor(service: ExporterServiceClient, claimed: ClaimedExport__Output, tally: Tally) {
    this.#service = service;
    this.#claimed = claimed;
    this.#tally = tally;
    this.#seconds = Number(claimed.leaseDuration?.seconds) + (claimed.leaseDuration?.nanos ?? 0) / 1e9;
  }

  /** Report while some work is done. */
  async during<T>(work: Promise<T>): Promise<T> {
    const beating = this.#beat().catch((error: unknown) => {
      // A lease that nobody renews will be lost; to know it now is better than to find out.
      log("error", "no more reports can be made", { error: String(error) });
      this.#isLost = true;
    });
    try {
      return await work;
    } finally {
      this.#over.abort();
      await beating;
    }
  }

  /** Throws what the server has answered last. */
  check(): void {
    if (this.#isLost) throw new LeaseLost("The export is not ours any more.");
    if (this.#isCancelled) throw new Ended("REASON_CANCELLED");
  }

  /** Wait until the server has answered a report: only who has just been heard may publish. */
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
      // Two reports may be lost, and the lease is still held.
      if (await this.#report()) await pause((this.#seconds * 1000) / 3, null, { signal }).catch(() => null);
      else await breathe();
    }
  }

  /** Report once, and tell whether the server took it. */
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
      this.#isHeard = true;
      return true;
    } catch (error) {
      const failed = failure(error);
      // LEASE_LOST, above all. To go on would be work for nobody.
      this.#isLost ||= !isPassing(failed);
      // Once, however long the server is away.
      if (this.#isLost) log("warning", "the lease is lost", { reason: why(failed) });
      else if (this.#isHeard) log("warning", "the server takes no report", { reason: explanation(failed) });
      this.#isHeard = false;
      return false;
    }
  }
}
