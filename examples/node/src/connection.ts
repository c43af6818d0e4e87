// A connection to the server, and calls that end.
import { readFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { PROTO } from "./contract.js";
import { tls, token } from "./settings.js";

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

/** How to know the server, and to be known by it: TLS, or plaintext to this machine. */
export function credentials(): grpc.ChannelCredentials {
  const files = tls();
  if (!files) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(files.authority, files.key, files.certificate);
}

export function options(): grpc.ChannelOptions {
  const name = process.env.CELLEXPORT_GRPC_SERVER_NAME;
  return name ? { ...OPTIONS, "grpc.ssl_target_name_override": name, "grpc.default_authority": name } : OPTIONS;
}

/** What presents a token: the first of those variables that is set. */
export function bearer(...names: string[]): grpc.Metadata {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token(...names)}`);
  return metadata;
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
