// node build/watch.js CELL: each change of a cell's status, until no export is under way.
import { status as codes } from "@grpc/grpc-js";
import { Backoff } from "./backoff.js";
import { bearer, credentials, options } from "./connection.js";
import { CellExportService } from "./contract.js";
import { explanation, failure } from "./errors.js";
import type { WatchCellExportResponse__Output } from "./generated/cellexport/v1/WatchCellExportResponse.js";
import { end, target } from "./settings.js";
import { shown } from "./shown.js";

// With these a watch may end that is worth opening again: where the server lets go of it, or of its connection.
const PASSING = new Set([codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.CANCELLED]);

process.once("uncaughtException", end);
const cell = process.argv[2] ?? "demo";
const service = new CellExportService(target(), credentials(), options());
const backoff = new Backoff();
// What to go on after: so nothing is lost, and nothing comes twice.
let revision = "0";

for (;;) {
  try {
    await watch();
    break;
  } catch (error) {
    const failed = failure(error);
    if (failed.reason === "REVISION_UNKNOWN") revision = "0";
    // What a proxy says of a connection that broke behind it.
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

/** One watch. It has no deadline: it ends when the export does, or with an error. */
async function watch(): Promise<void> {
  const request = { cell, afterRevision: revision, untilReady: true };
  const messages = service.WatchCellExport(request, bearer("TOKEN"));
  for await (const message of messages as AsyncIterable<WatchCellExportResponse__Output>) {
    if (backoff.isOutage) console.error("the server answers again");
    backoff.reset();
    revision = message.revision;
    // Without a status the message says that the last one still holds.
    if (message.cellExport) console.log(`${revision} ${shown(message.cellExport)}`);
  }
}
