// Random pauses between retries, so that callers that lost their connections together don't call again together.
import { setTimeout as pause } from "node:timers/promises";

const FIRST_MS = 100;
const LONGEST_MS = 5000;

/** Random pauses between 0 and a bound, which doubles after each failure: from 0.1 up to 5 seconds. */
export class Backoff {
  #failures = 0;

  /** Whether a failure has happened since the last success. Callers log only the first failure of an outage. */
  get isOutage(): boolean {
    return this.#failures > 0;
  }

  /** Begin again with the shortest pause, after a success. */
  reset(): void {
    this.#failures = 0;
  }

  /**
   * Wait before the next attempt.
   *
   * @param leastMs the pause that the server asks for; it is added to the random pause.
   * @param signal ends the pause early.
   */
  async wait(leastMs = 0, signal?: AbortSignal): Promise<void> {
    const bound = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#failures++);
    await pause(leastMs + Math.random() * bound, null, { signal }).catch(() => null);
  }
}
