// node build/watch.js CELL: prints each change of a cell's status, until no export is in progress.
import { status as codes } from "@grpc/grpc-js";
import { Backoff } from "./backoff.js";
import { bearer, credentials, options } from "./connection.js";
import { CellExportService } from "./contract.js";
import { explanation, failure } from "./errors.js";
import type { WatchCellExportResponse__Output } from "./generated/cellexport/v1/WatchCellExportResponse.js";
import { end, target } from "./settings.js";
import { shown } from "./shown.js";

// The watch is opened again after these statuses: the server ended it, or its connection broke.
const PASSING = new Set([codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.CANCELLED]);

process.once("uncaughtException", end);
const cell = process.argv[2] ?? "demo";
const service = new CellExportService(target(), credentials(), options());
const backoff = new Backoff();
// The last revision received. The next watch continues after it, so no status is lost or sent twice.
let revision = "0";

for (;;) {
  try {
    await watch();
    break;
  } catch (error) {
    const failed = failure(error);
    if (failed.reason === "REVISION_UNKNOWN") revision = "0";
    // A proxy ends a call with INTERNAL, without a reason, if the connection to its server breaks.
    else if (!PASSING.has(failed.code) && !(failed.code === codes.INTERNAL && !failed.reason)) {
      console.error(explanation(failed));
      process.exitCode = 1;
      break;
    }
    if (!backoff.isOutage) console.error(`watching again after revision ${revision}: ${explanation(failed)}`);
    await backoff.wait(failed.retryAfterMs);
  }
}
service.close();

/** Print the messages of one watch. It has no deadline: it ends when no export is in progress, or with an error. */
async function watch(): Promise<void> {
  const request = { cell, afterRevision: revision, untilReady: true };
  const messages = service.WatchCellExport(request, bearer("TOKEN"));
  for await (const message of messages as AsyncIterable<WatchCellExportResponse__Output>) {
    if (backoff.isOutage) console.error("server available again");
    backoff.reset();
    revision = message.revision;
    // A message without a status means that the last status is still true.
    if (message.cellExport) console.log(`${revision} ${shown(message.cellExport)}`);
  }
}
