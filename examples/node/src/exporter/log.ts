/** A line of JSON for each event, like the programs of the server. */
export function log(level: string, message: string, labels: object = {}): void {
  console.error(JSON.stringify({ time: new Date().toISOString(), level, message, ...labels }));
}
