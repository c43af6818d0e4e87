// Walks a cell's directory, and never leaves it.
//
// Node has no openat(2). `/proc/self/fd/{n}/{name}` has the same effect: the name is resolved in the open directory, so
// no part of the path can have become a link meanwhile. So this works on Linux only.
import { constants } from "node:fs";
import { type FileHandle, lstat, open, readdir } from "node:fs/promises";
import { Ended, errno } from "./ending.js";

const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
// O_NONBLOCK: if a pipe has replaced the file, opening it must not wait for a writer.
const FILE = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** The reason why a file or directory is not in the snapshot. */
export type Skipped = "symlink" | "special file" | "vanished" | "name too long" | "not a known part of a cell";

/** A file or directory below the root. `parent` is open until the walk continues. */
export interface Found {
  /** The relative path, separated by `/`, with one character for each byte. */
  path: string;
  name: string;
  parent: FileHandle;
  kind: "file" | "empty directory" | "directory" | Skipped;
  size: number;
  mtimeMs: number;
}

/** Open a subdirectory of a cell's directory. Return null if it doesn't exist. */
export async function openPart(cell: string, name: string): Promise<FileHandle | null> {
  try {
    const directory = await open(cell, DIRECTORY);
    try {
      return await open(below(directory, name), DIRECTORY);
    } catch (error) {
      if (errno(error) === "ENOENT") return null;
      throw error;
    } finally {
      await directory.close();
    }
  } catch (error) {
    throw unreadable(name, error);
  }
}

/** Yield all files and directories below an open directory, in the byte order of their names. */
export async function* walk(parent: FileHandle, path = ""): AsyncGenerator<Found> {
  for (const name of await names(parent, path)) {
    const found = await inspect(parent, name, path + name);
    if (found.kind !== "directory") {
      yield found;
      continue;
    }
    const opened = await openFound(found, DIRECTORY);
    if (typeof opened === "string") {
      yield { ...found, kind: opened };
      continue;
    }
    try {
      const isEmpty = (await names(opened, found.path)).length === 0;
      yield { ...found, kind: isEmpty ? "empty directory" : "directory" };
      yield* walk(opened, `${found.path}/`);
    } finally {
      await opened.close();
    }
  }
}

/** Open a file, or return why to skip it. */
export async function openFile(found: Found): Promise<FileHandle | Skipped> {
  const opened = await openFound(found, FILE);
  if (typeof opened === "string" || (await opened.stat()).isFile()) return opened;
  await opened.close();
  return "special file";
}

async function openFound(found: Found, flags: number): Promise<FileHandle | Skipped> {
  try {
    return await open(below(found.parent, found.name), flags);
  } catch (error) {
    const code = errno(error);
    if (code === "ENOENT") return "vanished";
    if (code === "ELOOP" || code === "ENOTDIR") return "symlink";
    if (code === "ENXIO" || code === "ENODEV") return "special file";
    throw unreadable(found.path, error);
  }
}

async function inspect(parent: FileHandle, name: string, path: string): Promise<Found> {
  const found: Found = { path, name, parent, kind: "vanished", size: 0, mtimeMs: 0 };
  try {
    const status = await lstat(below(parent, name));
    found.size = status.size;
    found.mtimeMs = Math.floor(status.mtimeMs);
    if (status.isFile()) found.kind = "file";
    else if (status.isDirectory()) found.kind = "directory";
    else found.kind = status.isSymbolicLink() ? "symlink" : "special file";
  } catch (error) {
    if (errno(error) !== "ENOENT") throw unreadable(path, error);
  }
  return found;
}

async function names(directory: FileHandle, path: string): Promise<string[]> {
  try {
    const found = await readdir(below(directory, ""), { encoding: "buffer" });
    return found.map((name) => name.toString("latin1")).sort();
  } catch (error) {
    throw unreadable(path || ".", error);
  }
}

function below(directory: FileHandle, name: string): Buffer {
  return Buffer.from(`/proc/self/fd/${directory.fd}/${name}`, "latin1");
}

function unreadable(path: string, error: unknown): Ended {
  return new Ended("REASON_SOURCE_UNREADABLE", `${path}: ${errno(error) || String(error)}`);
}
