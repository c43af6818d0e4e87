// Writes the snapshot of a cell, in the layout of docs/snapshot.md.
import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { Ended, errno, type Check } from "./ending.js";
import { entryName, shownPath } from "./names.js";
import type { Tally } from "./tally.js";
import { type Found, openFile, openPart, type Skipped, walk } from "./walk.js";
import { ZipWriter } from "./zip.js";

const EXPORT_VERSION = 2;
const LONGEST_NAME = 65_535;
const CHUNK = 256 * 1024;
const ODATA = [
  ...["10_box", "11_account", "12_extcell", "20_role", "21_rule", "22_relation", "23_sentmessage"],
  ...["24_receivedmessage", "30_extrole", "40_entitytype", "41_complextype", "50_property"],
  ...["51_complextypeproperty", "60_associationend", "70_userdata", "80_link"],
].map((stem) => `${stem}.pjson`);

/** The cell to export, and the data for the snapshot's manifest. */
export interface Subject {
  cell: string;
  owner: string;
  unitUrl: string;
  exportId: string;
  epoch: string;
  directory: string;
}

/** Count all entries and bytes into the tally's totals. */
export async function count(subject: Subject, tally: Tally, check: Check): Promise<void> {
  tally.entriesTotal = ODATA.length + 1;
  await eachIn(subject, "webdav", async (found) => {
    check();
    tally.entriesTotal += 1;
    if (found.kind === "file") tally.bytesTotal += found.size;
  });
}

/** Write the snapshot, and count the progress into the tally. Memory grows by less than a kilobyte with each entry. */
export async function write(subject: Subject, file: FileHandle, tally: Tally, check: Check): Promise<void> {
  const snapshot = new Snapshot(file, tally, check);
  const head = { _id: subject.cell, _source: { Name: subject.cell, Owner: subject.owner } };
  await snapshot.addText("10_odata/00_cell.json", JSON.stringify(head));
  const missing = new Set(ODATA);
  await eachIn(subject, "odata", async (found) => {
    const name = `10_odata/${found.path}`;
    if (!missing.delete(found.path)) return snapshot.skip(name, "not a known part of a cell");
    // Fail the export: otherwise data that can't be read would look like data that doesn't exist.
    const skipped = found.kind === "file" ? await snapshot.addFile(name, found) : found.kind;
    if (skipped) throw new Ended("REASON_SOURCE_UNREADABLE", `odata/${found.path}: ${skipped}`);
  });
  for (const name of missing) await snapshot.addText(`10_odata/${name}`, "");
  await eachIn(subject, "webdav", async (found) => {
    const skipped = await snapshot.addFound(`20_webdav/${found.path}`, found);
    if (skipped) snapshot.skip(`20_webdav/${found.path}`, skipped);
  });
  await snapshot.finish(subject);
}

class Snapshot {
  readonly #zip: ZipWriter;
  readonly #tally: Tally;
  readonly #check: Check;
  readonly #created = Date.now();
  readonly #lines: string[] = [];
  #count = 0;
  #bytes = 0;

  constructor(file: FileHandle, tally: Tally, check: Check) {
    this.#zip = new ZipWriter(file);
    this.#tally = tally;
    this.#check = check;
  }

  async addText(name: string, text: string): Promise<void> {
    await this.#add(name, this.#created, [Buffer.from(text)]);
  }

  /** Add an entry, or return why to skip it. Only an empty directory gets an entry of its own. */
  async addFound(name: string, found: Found): Promise<Skipped | null> {
    if (entryName(name).length >= LONGEST_NAME) return "name too long";
    switch (found.kind) {
      case "file":
        return this.addFile(name, found);
      case "empty directory":
        await this.#add(`${name}/`, found.mtimeMs, []);
        return null;
      case "directory":
        this.#tally.entriesDone += 1;
        return null;
      default:
        return found.kind;
    }
  }

  async addFile(name: string, found: Found): Promise<Skipped | null> {
    const opened = await openFile(found);
    if (typeof opened === "string") return opened;
    try {
      const { size, mtimeMs } = await opened.stat();
      await this.#add(name, Math.floor(mtimeMs), this.#read(opened, size, found.path));
      return null;
    } finally {
      await opened.close();
    }
  }

  skip(name: string, skipped: Skipped): void {
    this.#list(name, { skipped });
    this.#tally.entriesDone += 1;
  }

  /** Add the list of entries and the manifest, and finish the zip. */
  async finish(subject: Subject): Promise<void> {
    const digest = createHash("sha256");
    for (const line of this.#lines) digest.update(line);
    await this.#zip.add(Buffer.from("00_entries.ndjson"), this.#created, this.#listed());
    const manifest = {
      export_version: EXPORT_VERSION,
      unit_url: subject.unitUrl,
      cell: subject.cell,
      export_id: subject.exportId,
      epoch: Number(subject.epoch),
      create_date: this.#created,
      entry_count: this.#count,
      bytes: this.#bytes,
      entries_sha256: digest.digest("hex"),
    };
    await this.#zip.add(Buffer.from("00_manifest.json"), this.#created, [Buffer.from(JSON.stringify(manifest))]);
    await this.#zip.finish();
  }

  async #add(name: string, mtimeMs: number, content: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<void> {
    const digest = createHash("sha256");
    const before = this.#bytes;
    await this.#zip.add(entryName(name), mtimeMs, this.#hashed(content, digest));
    this.#list(name, { size: this.#bytes - before, sha256: digest.digest("hex"), mtime: mtimeMs });
    this.#count += 1;
    this.#tally.entriesDone += 1;
  }

  async *#hashed(content: AsyncIterable<Buffer> | Iterable<Buffer>, digest: ReturnType<typeof createHash>) {
    for await (const chunk of content) {
      this.#check();
      digest.update(chunk);
      this.#bytes += chunk.length;
      yield chunk;
    }
  }

  /** Yield as many bytes as the file had when it was opened. Bytes appended later are for the next snapshot. */
  async *#read(file: FileHandle, size: number, path: string) {
    const buffer = Buffer.allocUnsafe(CHUNK);
    for (let left = size; left > 0; ) {
      const { bytesRead } = await file.read(buffer, 0, Math.min(left, CHUNK)).catch((error: unknown) => {
        throw new Ended("REASON_SOURCE_UNREADABLE", `${path}: ${errno(error)}`);
      });
      if (!bytesRead) throw new Ended("REASON_SOURCE_CHANGED", `${path}: truncated while it was read`);
      left -= bytesRead;
      yield buffer.subarray(0, bytesRead);
      this.#tally.bytesDone += bytesRead;
    }
  }

  #list(name: string, what: object): void {
    this.#check();
    const shown = entryName(name).toString();
    const original = shownPath(name);
    const line = { name: shown, ...what, ...(shown === original ? {} : { original_name: original }) };
    this.#lines.push(`${JSON.stringify(line)}\n`);
  }

  *#listed() {
    for (const line of this.#lines) yield Buffer.from(line);
  }
}

async function eachIn(subject: Subject, part: string, take: (found: Found) => Promise<void> | void): Promise<void> {
  const root = await openPart(subject.directory, part);
  if (!root) return;
  try {
    for await (const found of walk(root)) await take(found);
  } finally {
    await root.close();
  }
}
