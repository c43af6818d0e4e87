// Settings, with the names of the programs' settings. An invalid setting ends a program with one sentence and status 2.
import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { createSecureContext } from "node:tls";
import { getSystemErrorMap } from "node:util";

const CA = "CELLEXPORT_GRPC_CA";
const CERT = "CELLEXPORT_GRPC_CLIENT_CERT";
const KEY = "CELLEXPORT_GRPC_CLIENT_KEY";

/** Thrown if a setting is invalid. Its text names the variable and says what to do. */
export class SettingError extends Error {}

/** End the program after an uncaught error. An invalid setting needs no stack trace, only its sentence. */
export function end(error: unknown): never {
  if (!(error instanceof SettingError)) throw error;
  console.error(error.message);
  process.exit(2);
}

/** Return the address of the server. */
export function target(): string {
  const name = process.env.CELLEXPORT_GRPC_TARGET || process.env.CELLEXPORT_GRPC_LISTEN || "127.0.0.1:50051";
  const host = name.slice(name.lastIndexOf("/") + 1).replace(/:[0-9]+$/, "");
  const isLocal = name.startsWith("unix:") || ["localhost", "127.0.0.1", "[::1]"].includes(host);
  if (!isLocal && !process.env[CA] && process.env.CELLEXPORT_PLAINTEXT !== "allow") {
    throw new SettingError(
      `CELLEXPORT_GRPC_TARGET: ${name} is another machine, and the token would be sent in plaintext. ` +
        `Set ${CA}, or CELLEXPORT_PLAINTEXT=allow if the network itself protects it.`,
    );
  }
  return name;
}

/** Return the path of a directory that must exist. */
export function directory(name: string, otherwise: string): string {
  const path = resolve(process.env[name] || otherwise);
  // `path/.` exists only if the path is a directory.
  if (existsSync(`${path}/.`)) return path;
  throw new SettingError(`${name}: ${path} is not a directory. Make it, or name an existing directory.`);
}

/** The PEM files for TLS: the authority of the server, and the client's certificate and key. */
export interface Tls {
  authority: Buffer;
  certificate: Buffer | null;
  key: Buffer | null;
}

/** Return the content of the PEM files, or null for plaintext. */
export function tls(): Tls | null {
  const [authority, certificate, key] = [pem(CA), pem(CERT), pem(KEY)];
  if (!certificate !== !key) throw new SettingError(`${CERT}, ${KEY}: only one of them is set. Set both, or none.`);
  if (!authority) {
    if (!key) return null;
    throw new SettingError(`${CERT}: is set, but ${CA} is not. Set it to the authority of the server.`);
  }
  // Node ignores an invalid authority, and then trusts no server.
  must(() => new X509Certificate(authority), `${CA}: ${process.env[CA]} holds no certificate in PEM.`);
  if (certificate && key) {
    const pair = `${KEY}: ${process.env[KEY]} is not the key in PEM to the certificate in ${process.env[CERT]}.`;
    must(() => createSecureContext({ cert: certificate, key }), pair);
  }
  return { authority, certificate, key };
}

function pem(name: string): Buffer | null {
  const file = process.env[name];
  if (!file) return null;
  try {
    return readFileSync(file);
  } catch (error) {
    // Don't show the path of the key's file: by mistake the variable may hold the key itself.
    throw new SettingError(`${name}: ${name === KEY ? "the file" : file} can't be read (${inWords(error)}).`);
  }
}

function must(use: () => unknown, sentence: string): void {
  try {
    use();
  } catch {
    throw new SettingError(sentence);
  }
}

const latest = new Map<string, string>();

/** Return the token from the first of these variables that is set. */
export function token(...names: string[]): string {
  for (const name of names) {
    const found = secret(name);
    if (found) return found;
  }
  const either = names.join(" or ");
  throw new SettingError(`${either}: is not set. Set it to a token, or ${names[0]}_FILE to a file that holds one.`);
}

/**
 * Return the token from a variable, or from the file that `{name}_FILE` names.
 *
 * Read the file each time, because tokens of a service mesh live for minutes. If the file is missing or invalid, return
 * the last valid token.
 */
function secret(name: string): string | undefined {
  const file = process.env[`${name}_FILE`];
  if (!file) return process.env[name] && checked(name, process.env[name]);
  try {
    latest.set(name, checked(`${name}_FILE`, readFileSync(file, "utf8").trimEnd()));
  } catch (error) {
    if (latest.has(name)) return latest.get(name);
    if (error instanceof SettingError) throw error;
    // Don't show the file's name: it may be the token itself, set in the wrong variable.
    throw new SettingError(`${name}_FILE: the file can't be read (${inWords(error)}).`);
  }
  return latest.get(name);
}

function checked(name: string, token: string): string {
  if (/^[!-~]+$/.test(token)) return token;
  throw new SettingError(`${name}: must be printable ASCII characters without blanks.`);
}

/** Return the system's message for an error, without the name of the system call. */
function inWords(error: unknown): string {
  const { errno, message } = error as NodeJS.ErrnoException;
  return getSystemErrorMap().get(errno ?? 0)?.[1] ?? message;
}
