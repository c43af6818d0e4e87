import type { Progress } from "../generated/cellexport/v1/Progress.js";

// One entry counts as much work as this many bytes, so that neither one huge file nor a million small ones looks
// stalled.
const ENTRY_WEIGHT = 4096;

/** The progress of an export. The totals grow while the exporter counts. */
export class Tally {
  entriesDone = 0;
  entriesTotal = 0;
  bytesDone = 0;
  bytesTotal = 0;

  /** Return the progress for a report. If more was done than counted, the totals are raised. */
  progress(): Progress {
    const entriesTotal = Math.max(this.entriesTotal, this.entriesDone);
    const bytesTotal = Math.max(this.bytesTotal, this.bytesDone);
    return {
      workDone: this.bytesDone + ENTRY_WEIGHT * this.entriesDone,
      workTotal: bytesTotal + ENTRY_WEIGHT * entriesTotal,
      entriesDone: this.entriesDone,
      entriesTotal,
      bytesDone: this.bytesDone,
      bytesTotal,
    };
  }
}
