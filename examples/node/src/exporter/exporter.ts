// The exporter: claims exports, one after the other, and does each to its end.
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { type ClientUnaryCall, status as codes } from "@grpc/grpc-js";
import { Backoff } from "../backoff.js";
import { answer, within } from "../connection.js";
import { explanation, type Failure, failure, why } from "../errors.js";
import type { ClaimedExport__Output } from "../generated/cellexport/v1/ClaimedExport.js";
import type { ClaimExportResponse__Output } from "../generated/cellexport/v1/ClaimExportResponse.js";
import type { ExporterServiceClient } from "../generated/cellexport/v1/ExporterService.js";
import type { FinishExportResponse__Output } from "../generated/cellexport/v1/FinishExportResponse.js";
import { SettingError } from "../settings.js";
import type { SnapshotArea } from "./area.js";
import { Ended, errno, LeaseLost, type Reason } from "./ending.js";
import { breathe, isPassing, Lease, token } from "./lease.js";
import { log } from "./log.js";
import { count, type Subject, write } from "./snapshot.js";
import { Tally } from "./tally.js";

const WAIT_SECONDS = 20;
const CALL_SECONDS = 3;
// How long the exporter tries, after SIGTERM or SIGINT, to report the result.
const FAREWELL_MS = 3000;
const INTERRUPTIONS: readonly Reason[] = ["REASON_SHUTDOWN", "REASON_CANCELLED"];
const REFUSALS: ReadonlySet<codes> = new Set([codes.UNAUTHENTICATED, codes.PERMISSION_DENIED]);
const FULL = ["ENOSPC", "EDQUOT", "EFBIG"];

export class Exporter {
  readonly #service: ExporterServiceClient;
  readonly #cells: string;
  readonly #area: SnapshotArea;
  readonly #stopping = new AbortController();
  readonly #backoff = new Backoff();
  #claiming: ClientUnaryCall | null = null;

  /** @param cells the directory `cells` of the unit. */
  constructor(service: ExporterServiceClient, cells: string, area: SnapshotArea) {
    this.#service = service;
    this.#cells = cells;
    this.#area = area;
  }

  /** Stop soon. A running export is interrupted. */
  stop(): void {
    this.#stopping.abort();
    this.#claiming?.cancel();
  }

  get #isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Do exports until `stop` is called. Throw SettingError if the server refuses the token. */
  async run(): Promise<void> {
    // A retried claim with the same id gets the same export again.
    let requestId = randomUUID();
    while (!this.#isStopping) {
      try {
        const { claimedExport } = await this.#claim(requestId);
        requestId = randomUUID();
        if (this.#backoff.isOutage) log("info", "server available again");
        this.#backoff.reset();
        if (claimedExport) await this.#export(claimedExport);
      } catch (error) {
        const failed = failure(error);
        if (REFUSALS.has(failed.code) && !isPassing(failed)) throw new SettingError(refused(failed));
        if (!isPassing(failed)) throw error;
        if (!this.#isStopping) await this.#wait(failed);
        if (this.#isStopping) await this.#giveBack(requestId);
      }
    }
  }

  #claim(requestId: string): Promise<ClaimExportResponse__Output> {
    // During an outage the claim doesn't wait: its response shows soon that the server is available again.
    const request = { requestId, wait: { seconds: this.#backoff.isOutage ? 0 : WAIT_SECONDS } };
    return answer<ClaimExportResponse__Output>((done) => {
      this.#claiming = this.#service.ClaimExport(request, token(), within(WAIT_SECONDS + 5), done);
    });
  }

  /**
   * Return the export that a cancelled claim may have got to the queue. Otherwise the export would wait until its lease
   * expires.
   */
  async #giveBack(requestId: string): Promise<void> {
    await answer((done) => {
      const metadata = token();
      // The connection may be broken: wait for a new one.
      metadata.setOptions({ waitForReady: true });
      this.#service.ClaimExport({ requestId, giveBack: true }, metadata, within(1), done);
    }).catch(() => null);
  }

  /** Pause before the next claim. Log the reason only for the first failed claim of an outage. */
  async #wait(failed: Failure): Promise<void> {
    const reason = explanation(failed);
    if (!this.#backoff.isOutage) log("warning", "claims fail; retrying", { reason });
    await this.#backoff.wait(failed.retryAfterMs, this.#stopping.signal);
  }

  async #export(claimed: ClaimedExport__Output): Promise<void> {
    const labels = { cell: claimed.cell, snapshot: claimed.name, request_key: claimed.requestKey };
    log("info", "export started", labels);
    try {
      const reason = await this.#attempt(claimed);
      const result = resultOf(reason);
      if (reason !== "REASON_UNSPECIFIED") await this.#note(claimed, result, reason);
      log("info", "export ended", { ...labels, ...outcomeFields(result, reason) });
      await this.#finish(claimed, result, reason);
    } catch (error) {
      if (!(error instanceof LeaseLost)) throw error;
      log("error", "export abandoned: it no longer belongs to this exporter", { ...labels, error: error.message });
    }
  }

  /** Do an export. Return why there is no snapshot, or REASON_UNSPECIFIED if there is one. */
  async #attempt(claimed: ClaimedExport__Output): Promise<Reason> {
    const tally = new Tally();
    const lease = new Lease(this.#service, claimed, tally);
    try {
      await lease.during(this.#write(claimed, lease, tally));
      return "REASON_UNSPECIFIED";
    } catch (error) {
      if (error instanceof LeaseLost) throw error;
      if (error instanceof Ended && INTERRUPTIONS.includes(error.reason)) return error.reason;
      log("error", "export stopped by an error", { cell: claimed.cell, error: String(error) });
      if (error instanceof Ended) return error.reason;
      if (FULL.includes(errno(error))) return "REASON_NO_SPACE";
      return errno(error) ? "REASON_SNAPSHOT_UNWRITABLE" : "REASON_INTERNAL";
    }
  }

  async #write(claimed: ClaimedExport__Output, lease: Lease, tally: Tally): Promise<void> {
    const check = () => {
      lease.check();
      if (this.#isStopping) throw new Ended("REASON_SHUTDOWN");
    };
    const { cell, name, owner, unitUrl } = claimed;
    const { exportId, epoch } = claimed.lease!;
    const subject: Subject = { cell, owner, unitUrl, exportId, epoch, directory: join(this.#cells, cell) };
    const part = await this.#area.begin(cell, name, exportId, epoch);
    try {
      await count(subject, tally, check);
      await write(subject, part.file, tally, check);
      await part.file.sync();
      await lease.confirm(check);
      await part.publish();
    } finally {
      await part.remove();
    }
  }

  async #note(claimed: ClaimedExport__Output, result: string, reason: Reason): Promise<void> {
    const verb = result === "RESULT_INTERRUPTED" ? "was interrupted" : "failed";
    await this.#area.note(claimed.cell, claimed.name, verb, reason).catch((error: unknown) => {
      log("warning", "error note not written", { error: String(error) });
    });
  }

  /** Report the result, and retry until the server responds. During shutdown, give up 3 seconds after the first try. */
  async #finish(claimed: ClaimedExport__Output, result: Result, reason: Reason): Promise<void> {
    const request = { cell: claimed.cell, lease: claimed.lease, result, reason };
    const lastTry = Date.now() + FAREWELL_MS;
    for (;;) {
      try {
        await answer<FinishExportResponse__Output>((done) =>
          this.#service.FinishExport(request, token(), within(CALL_SECONDS), done),
        );
        return;
      } catch (error) {
        const failed = failure(error);
        if (!isPassing(failed)) return log("error", "server refused the result of the export", { reason: why(failed) });
        if (this.#isStopping && Date.now() > lastTry) return;
        await breathe();
      }
    }
  }
}

function refused(failed: Failure): string {
  const advice = "set CELLEXPORT_EXPORTER_TOKEN, or CELLEXPORT_MASTER_TOKEN, to one it takes.";
  return `the server refuses the token (${why(failed)}): ${advice}`;
}

type Result = "RESULT_SUCCEEDED" | "RESULT_INTERRUPTED" | "RESULT_FAILED";

/** Return the log fields of a result, as in the server's log. The reason is empty for a success. */
function outcomeFields(result: Result, reason: Reason): { result: string; reason: string } {
  const word = reason === "REASON_UNSPECIFIED" ? "" : reason.replace("REASON_", "");
  return { result: result.replace("RESULT_", ""), reason: word };
}

function resultOf(reason: Reason): Result {
  if (reason === "REASON_UNSPECIFIED") return "RESULT_SUCCEEDED";
  return INTERRUPTIONS.includes(reason) ? "RESULT_INTERRUPTED" : "RESULT_FAILED";
}
