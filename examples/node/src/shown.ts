import type { CellExport__Output } from "./generated/cellexport/v1/CellExport.js";

/** Return a status as one line. Throw if the server's response had no status. */
export function shown(status: CellExport__Output | null): string {
  if (!status) throw new Error("The server sent no status.");
  const { exportation, lastOutcome } = status;
  if (exportation) return `exporting ${exportation.progressPercent}% ${exportation.name}`;
  return lastOutcome ? `ready ${lastOutcome.result} ${lastOutcome.reason} ${lastOutcome.name}` : "ready";
}
