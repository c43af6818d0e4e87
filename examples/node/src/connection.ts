// A connection to the server, and calls that end. Settings are the same as those of the programs.
import { readFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { PROTO } from "./contract.js";

const OPTIONS: grpc.ChannelOptions = {
  // Which calls are retried, and how: the same for callers in every language.
  "grpc.service_config": readFileSync(`${PROTO}cellexport/service_config.json`, "utf8"),
  // No TXT record of the server's name may say otherwise.
  "grpc.service_config_disable_resolution": 1,
  // A server that has gone without a word is noticed within half a minute, also by a watch that is silent. The server
  // takes a ping each 10 seconds, and sends away who pings more often.
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.enable_http_proxy": 0,
};

/** Thrown where a setting is no good. Its text names the variable and says what to do. */
export class SettingError extends Error {}

/** For errors that nobody caught: of a bad setting a sentence is enough. */
export function end(error: unknown): never {
  if (!(error instanceof SettingError)) throw error;
  console.error(error.message);
  process.exit(2);
}

/** Where the server is. */
export function target(): string {
  const name = process.env.CELLEXPORT_GRPC_TARGET || process.env.CELLEXPORT_GRPC_LISTEN || "127.0.0.1:50051";
  const host = name.slice(name.lastIndexOf("/") + 1).replace(/:[0-9]+$/, "");
  const isLocal = name.startsWith("unix:") || ["localhost", "127.0.0.1", "[::1]"].includes(host);
  if (!isLocal && !process.env.CELLEXPORT_GRPC_CA && process.env.CELLEXPORT_PLAINTEXT !== "allow") {
    throw new SettingError(`CELLEXPORT_GRPC_TARGET: ${name} is another machine, and would get the token in the open.`);
  }
  return name;
}

/** How to know the server, and to be known by it: PEM files, or plaintext to this machine. */
export function credentials(): grpc.ChannelCredentials {
  const pem = (name: string) => (process.env[name] ? readFileSync(process.env[name]) : null);
  const authority = pem("CELLEXPORT_GRPC_CA");
  if (!authority) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(authority, pem("CELLEXPORT_GRPC_CLIENT_KEY"), pem("CELLEXPORT_GRPC_CLIENT_CERT"));
}

export function options(): grpc.ChannelOptions {
  const name = process.env.CELLEXPORT_GRPC_SERVER_NAME;
  return name ? { ...OPTIONS, "grpc.ssl_target_name_override": name, "grpc.default_authority": name } : OPTIONS;
}

const latest = new Map<string, string>();

/** What presents a token: the first of those variables that is set. */
export function bearer(...names: string[]): grpc.Metadata {
  for (const name of names) {
    const token = secret(name);
    if (token) {
      const metadata = new grpc.Metadata();
      metadata.set("authorization", `Bearer ${token}`);
      return metadata;
    }
  }
  const either = names.join(" or ");
  throw new SettingError(`${either}: is not set. Set it to a token, or ${names[0]}_FILE to a file that holds one.`);
}

/** Tokens of the mesh live for minutes, so a file is read anew for each call. One that is gone leaves the last. */
function secret(name: string): string | undefined {
  const file = process.env[`${name}_FILE`];
  if (!file) return process.env[name];
  try {
    const token = readFileSync(file, "utf8").trimEnd();
    if (token) latest.set(name, token);
  } catch (error) {
    if (!latest.has(name)) throw error;
  }
  return latest.get(name);
}

/** When a call that may take so long has to be over. No unary call goes without. */
export function within(seconds: number): grpc.CallOptions {
  return { deadline: Date.now() + seconds * 1000 };
}

/** The answer of a unary call. */
export function answer<T>(begin: (done: grpc.requestCallback<T>) => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    begin((error, value) => (error ? reject(error) : resolve(value as T)));
  });
}
