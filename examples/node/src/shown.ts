import type { CellExport__Output } from "./generated/cellexport/v1/CellExport.js";

/** A status in a line. A message that is absent is null here. */
export function shown(status: CellExport__Output | null): string {
  if (!status) throw new Error("The server sent no status.");
  const { exportation, lastOutcome } = status;
  if (exportation) return `exporting ${exportation.progressPercent}% ${exportation.name}`;
  return lastOutcome ? `ready ${lastOutcome.result} ${lastOutcome.reason} ${lastOutcome.name}` : "ready";
}
