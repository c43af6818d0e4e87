// Waiting between tries, so that callers who were cut off together don't come back together.
import { setTimeout as pause } from "node:timers/promises";

const FIRST_MS = 100;
const LONGEST_MS = 10_000;

/** Waits longer after each failure: anything between nothing and a bound that doubles. */
export class Backoff {
  #failures = 0;

  /** Something went well: begin anew. */
  reset(): void {
    this.#failures = 0;
  }

  /** @param leastMs what the server asks for. */
  async wait(leastMs = 0): Promise<void> {
    const bound = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures++);
    await pause(leastMs + Math.random() * bound);
  }
}
