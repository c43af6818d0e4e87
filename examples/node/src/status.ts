// node build/status.js CELL: prints the status of a cell's export, or a sentence about the error.
import { status as codes } from "@grpc/grpc-js";
import { answer, bearer, credentials, options, within } from "./connection.js";
import { CellExportService } from "./contract.js";
import { explanation, type Failure, failure, why } from "./errors.js";
import type { GetCellExportResponse__Output } from "./generated/cellexport/v1/GetCellExportResponse.js";
import { end, target } from "./settings.js";
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
  console.error(explained(failure(error)));
  // Exit now: a pending connection would keep the program running.
  process.exit(1);
}
service.close();

/** Return a sentence about an error. Branch on reasons and statuses, which are stable; messages may change. */
function explained(failed: Failure): string {
  const { code, reason } = failed;
  switch (reason) {
    case "CELL_NOT_FOUND":
      return `${reason}: there is no cell ${cell}.`;
    case "TOKEN_EXPIRED":
      return `${reason}: get another token.`;
    case "PRIVILEGE_LACKING":
    case "SCOPE_INSUFFICIENT":
      return `${reason}: this token is valid, but lacks the privilege.`;
  }
  if (code === codes.UNAUTHENTICATED) return `${why(failed)}: the server doesn't accept the token.`;
  if (!reason) return explanation(failed);
  // The channel has already retried, as the service config says.
  return `${reason}: ${code === codes.UNAVAILABLE ? "try again later." : "unexpected."}`;
}
