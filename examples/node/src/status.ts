// node build/status.js CELL: the status of a cell's export, and what to do where there is none.
import { status as codes } from "@grpc/grpc-js";
import { answer, bearer, credentials, end, options, target, within } from "./connection.js";
import { CellExportService } from "./contract.js";
import { failure, why } from "./errors.js";
import type { GetCellExportResponse__Output } from "./generated/cellexport/v1/GetCellExportResponse.js";
import { shown } from "./shown.js";

process.once("uncaughtException", end);
const cell = process.argv[2] ?? "demo";
const service = new CellExportService(target(), credentials(), options());

try {
  const { cellExport } = await answer<GetCellExportResponse__Output>((done) =>
    service.GetCellExport({ cell }, bearer("TOKEN"), within(3), done),
  );
  console.log(shown(cellExport));
} catch (error) {
  const failed = failure(error);
  console.error(`${why(failed)}: ${advice(failed.reason, failed.code)}`);
  process.exitCode = 1;
} finally {
  service.close();
}

/** Reasons are stable, and so are statuses; messages are for people, and may change. */
function advice(reason: string, code: codes): string {
  switch (reason) {
    case "CELL_NOT_FOUND":
      return `there is no cell ${cell}.`;
    case "TOKEN_EXPIRED":
      return "get another token.";
    case "PRIVILEGE_LACKING":
    case "SCOPE_INSUFFICIENT":
      return "this token is good, but not for that.";
  }
  if (code === codes.UNAUTHENTICATED) return "the server doesn't take the token.";
  // The calls of the service config were retried already.
  if (code === codes.UNAVAILABLE) return "try again later.";
  return "unexpected.";
}
