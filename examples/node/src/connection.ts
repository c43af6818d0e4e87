// The connection to the server, and calls with deadlines.
import { readFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { PROTO } from "./contract.js";
import { tls, token } from "./settings.js";

const OPTIONS: grpc.ChannelOptions = {
  // This file says which calls the channel retries, and how. It is the same for callers in every language.
  "grpc.service_config": readFileSync(`${PROTO}cellexport/service_config.json`, "utf8"),
  // Ignore service configs in TXT records of the server's name.
  "grpc.service_config_disable_resolution": 1,
  // These pings detect a dead server within 30 seconds, even if a watch is silent. The server allows a ping every 10
  // seconds, and closes connections that ping more often.
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.enable_http_proxy": 0,
};

/** Return the channel's credentials: for TLS, or for plaintext if the settings name no TLS files. */
export function credentials(): grpc.ChannelCredentials {
  const files = tls();
  if (!files) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(files.authority, files.key, files.certificate);
}

/** Return the options of a channel. */
export function options(): grpc.ChannelOptions {
  const name = process.env.CELLEXPORT_GRPC_SERVER_NAME;
  return name ? { ...OPTIONS, "grpc.ssl_target_name_override": name, "grpc.default_authority": name } : OPTIONS;
}

/** Return the metadata that presents a token. The token is from the first of these variables that is set. */
export function bearer(...names: string[]): grpc.Metadata {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token(...names)}`);
  return metadata;
}

/** Return the options of a call with that deadline. Every unary call needs a deadline. */
export function within(seconds: number): grpc.CallOptions {
  return { deadline: Date.now() + seconds * 1000 };
}

/** Return the response of a unary call. */
export function answer<T>(begin: (done: grpc.requestCallback<T>) => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    begin((error, value) => (error ? reject(error) : resolve(value as T)));
  });
}
