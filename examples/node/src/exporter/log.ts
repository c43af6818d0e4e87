/** Log an event as one line of JSON, like the Python programs. */
export function log(level: string, message: string, labels: object = {}): void {
  console.error(JSON.stringify({ time: new Date().toISOString(), level, message, ...labels }));
}
