import type { Progress } from "../generated/cellexport/v1/Progress.js";

// An entry counts as much work as this many bytes: neither a huge file nor a million small ones looks like a stall.
const ENTRY_WEIGHT = 4096;

/** How far an export is. The totals grow while everything is counted. */
export class Tally {
  entriesDone = 0;
  entriesTotal = 0;
  bytesDone = 0;
  bytesTotal = 0;

  /** What to report. Where more was found than had been counted, the totals grow with it. */
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
