// The snapshot directory, with the same layout as for the Python exporter (server/exporter/snapshot_directory.py):
//
// - `{Name}.{export id}.{epoch}.part` is a part: a snapshot that is being written, locked by its exporter
// - `{Name}.zip` is a complete snapshot: a hard link to the part, made in one step, which never replaces a file
// - `{Name}.error` says why there is no zip
//
// The part is also a fence against its own exporter: when that exporter's lease has expired, the server or a newer
// exporter removes the part. Then the old exporter can't make the link.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:fs";
import { type FileHandle, link, lstat, mkdir, open, readdir, rename, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Ended, errno, LeaseLost } from "./ending.js";

const PART = /^[A-Za-z0-9_-]+\.[0-9a-f]+\.([0-9]+)\.part$/;
const NEW = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
const OLD = constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** A snapshot that is being written to `file`. */
export class Part {
  readonly file: FileHandle;
  readonly #path: string;
  readonly #directory: string;
  readonly #target: string;

  constructor(file: FileHandle, path: string, directory: string, target: string) {
    this.file = file;
    this.#path = path;
    this.#directory = directory;
    this.#target = target;
  }

  /** Give the part its final name. Sync it before, and confirm the lease (`Lease.confirm`). */
  async publish(): Promise<void> {
    try {
      await link(this.#path, this.#target);
    } catch (error) {
      if (errno(error) === "EEXIST") throw new Ended("REASON_NAME_TAKEN");
      if (errno(error) === "ENOENT") throw new LeaseLost("The part was removed.");
      throw error;
    }
    try {
      await syncDirectory(this.#directory);
    } catch (error) {
      // After a power cut the link might be gone, so don't report the snapshot as published.
      await unlink(this.#target);
      throw error;
    }
  }

  async remove(): Promise<void> {
    await gone(this.#path);
    await this.file.close();
  }
}

export class SnapshotArea {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  /** Make the snapshot directory if it is missing, and remove the parts that no exporter has locked. */
  async prepare(): Promise<void> {
    await makeDirectory(this.#root);
    // Check now whether files can be made and locked, not only with the first export.
    const probe = join(this.#root, `.${process.pid}.probe`);
    const file = await locked(probe);
    await gone(probe);
    await file.close();
    for (const entry of await readdir(this.#root, { withFileTypes: true })) {
      if (!entry.isDirectory()) continue;
      const directory = join(this.#root, entry.name);
      for (const name of await readdir(directory)) {
        if (name.endsWith(".part")) await sweep(join(directory, name));
      }
    }
  }

  /** Return a part to write. After this, no older exporter of the cell can publish. */
  async begin(cell: string, name: string, exportId: string, epoch: string): Promise<Part> {
    const directory = await this.#directory(cell);
    await fence(directory, BigInt(epoch));
    const target = join(directory, `${name}.zip`);
    if (await exists(target)) throw new Ended("REASON_NAME_TAKEN");
    const path = join(directory, `${name}.${exportId}.${epoch}.part`);
    const part = new Part(await locked(path), path, directory, target);
    await gone(join(directory, `${name}.error`));
    return part;
  }

  /** Write `{Name}.error`: an error body that says why there is no snapshot. */
  async note(cell: string, name: string, verb: string, reason: string): Promise<void> {
    const path = join(await this.#directory(cell), `${name}.error`);
    const value = `Cell export ${verb}. [${reason.replace("REASON_", "")}]`;
    const body = { code: "PR500-CX-0001", message: { lang: "en", value } };
    await writeFile(`${path}.new`, JSON.stringify(body));
    await rename(`${path}.new`, path);
  }

  async #directory(cell: string): Promise<string> {
    await makeDirectory(this.#root);
    const directory = join(this.#root, cell);
    await makeDirectory(directory);
    return directory;
  }
}

/** Remove the parts of older leases, and other parts that are not locked. Throw LeaseLost if a newer exporter lives. */
async function fence(directory: string, epoch: bigint): Promise<void> {
  for (const name of await readdir(directory)) {
    const match = PART.exec(name);
    const path = join(directory, name);
    if (!match) continue;
    if (BigInt(match[1]!) < epoch) await gone(path);
    else if (!(await sweep(path)) && (await exists(path))) throw new LeaseLost("A newer exporter is alive.");
  }
}

/** Remove a part, unless an exporter has locked it or it can't be opened. Return whether it was removed. */
async function sweep(path: string): Promise<boolean> {
  let file: FileHandle;
  try {
    file = await open(path, OLD);
  } catch {
    return false;
  }
  try {
    const isFree = await lock(file, "--nonblock");
    if (isFree) await gone(path);
    return isFree;
  } finally {
    await file.close();
  }
}

/** Make a new file and lock it. If another exporter's sweep removed the file before it was locked, make it again. */
async function locked(path: string): Promise<FileHandle> {
  for (;;) {
    const file = await open(path, NEW, 0o600);
    await lock(file);
    if (await exists(path)) return file;
    await file.close();
  }
}

/**
 * Lock an open file, and return whether that was possible.
 *
 * Node has no flock(2), so the program `flock` of util-linux takes the lock. It inherits the open file, and the lock
 * belongs to the open file. So the lock stays when `flock` exits, and is released when this process closes the file or
 * dies.
 */
async function lock(file: FileHandle, ...options: string[]): Promise<boolean> {
  const child = spawn("flock", ["--exclusive", ...options, "3"], { stdio: ["ignore", "ignore", "inherit", file.fd] });
  const [code] = (await once(child, "exit")) as [number | null];
  if (code !== 0 && code !== 1) throw new Error(`flock ended with ${code}.`);
  return code === 0;
}

/** Make a directory, unless it exists. Refuse a link: it could send snapshots anywhere. */
async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, 0o700);
  } catch (error) {
    if (errno(error) !== "EEXIST") throw error;
    if (!(await lstat(path)).isDirectory()) throw Object.assign(error as Error, { code: "ENOTDIR" });
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    (error: unknown) => {
      if (errno(error) === "ENOENT") return false;
      throw error;
    },
  );
}

async function gone(path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => {
    if (errno(error) !== "ENOENT") throw error;
  });
}
