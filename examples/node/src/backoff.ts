// Waiting between tries, so that callers who were cut off together don't come back together.
import { setTimeout as pause } from "node:timers/promises";

const FIRST_MS = 100;
const LONGEST_MS = 5000;

/** Waits longer after each failure: anything between nothing and a bound that doubles. */
export class Backoff {
  #failures = 0;

  /** Whether nothing has gone well since the last failure: of those that follow there is nothing new to say. */
  get isOutage(): boolean {
    return this.#failures > 0;
  }

  /** Something went well: begin anew. */
  reset(): void {
    this.#failures = 0;
  }

  /**
   * @param leastMs what the server asks for.
   * @param signal ends the wait before its time.
   */
  async wait(leastMs = 0, signal?: AbortSignal): Promise<void> {
    const bound = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures++);
    await pause(leastMs + Math.random() * bound, null, { signal }).catch(() => null);
  }
}
