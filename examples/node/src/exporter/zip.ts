// Writes a zip without compression, so no package for compression is needed.
//
// All sizes are in zip64 fields, so small and large snapshots have the same layout. The header of an entry is written
// after its content, when the checksum is known. So the file must allow writes at any position.
import type { FileHandle } from "node:fs/promises";

const VERSION = 45;
const UTF8_NAME = 0x0800;
const WIDE_16 = 0xffff;
const WIDE_32 = 0xffff_ffff;
const MADE_ON_UNIX = 3 << 8;
const FILE_MODE = 0o100600;
const DIRECTORY_MODE = 0o040700;
const DOS_DIRECTORY = 0x10;
const HEADER_SIZE = 30;
const HEADER_FIELD_SIZE = 20;

export class ZipWriter {
  readonly #file: FileHandle;
  readonly #records: Buffer[] = [];
  #position = 0;

  constructor(file: FileHandle) {
    this.#file = file;
  }

  /** Add an entry. A name that ends in a slash is a directory. */
  async add(name: Buffer, mtimeMs: number, content: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<void> {
    const start = this.#position;
    this.#position += HEADER_SIZE + name.length + HEADER_FIELD_SIZE;
    const begun = this.#position;
    let crc = 0;
    for await (const chunk of content) {
      crc = crc32(chunk, crc);
      await this.#write(chunk);
    }
    const size = this.#position - begun;
    const numbers = Buffer.alloc(22);
    numbers.writeUInt16LE(UTF8_NAME, 0);
    numbers.writeUInt32LE(dosTime(mtimeMs), 4);
    numbers.writeUInt32LE(crc, 8);
    numbers.writeUInt32LE(WIDE_32, 12);
    numbers.writeUInt32LE(WIDE_32, 16);
    numbers.writeUInt16LE(name.length, 20);
    await writeAll(this.#file, header(numbers, name, size), start);
    this.#records.push(record(numbers, name, size, start));
  }

  /** Write the central directory, which ends the zip. */
  async finish(): Promise<void> {
    const start = this.#position;
    for (const entry of this.#records) await this.#write(entry);
    await this.#write(end(this.#records.length, start, this.#position));
  }

  async #write(chunk: Buffer): Promise<void> {
    await writeAll(this.#file, chunk, this.#position);
    this.#position += chunk.length;
  }
}

function header(numbers: Buffer, name: Buffer, size: number): Buffer {
  const head = Buffer.from("PK\x03\x04....", "latin1");
  head.writeUInt16LE(VERSION, 4);
  return Buffer.concat([head.subarray(0, 6), numbers, uint16(HEADER_FIELD_SIZE), name, field(size, size)]);
}

function record(numbers: Buffer, name: Buffer, size: number, start: number): Buffer {
  const isDirectory = name.at(-1) === 0x2f;
  const head = Buffer.from("PK\x01\x02....", "latin1");
  head.writeUInt16LE(MADE_ON_UNIX | VERSION, 4);
  head.writeUInt16LE(VERSION, 6);
  const wide = field(size, size, start);
  // The lengths of the extra field and the comment, the disk number, and the attributes of the entry.
  const tail = Buffer.alloc(16);
  tail.writeUInt16LE(wide.length, 0);
  tail.writeUInt32LE((isDirectory ? DIRECTORY_MODE : FILE_MODE) * 0x1_0000 + (isDirectory ? DOS_DIRECTORY : 0), 8);
  tail.writeUInt32LE(WIDE_32, 12);
  return Buffer.concat([head, numbers, tail, name, wide]);
}

function end(count: number, start: number, position: number): Buffer {
  const wide = Buffer.alloc(56);
  wide.write("PK\x06\x06", "latin1");
  wide.writeBigUInt64LE(44n, 4);
  wide.writeUInt16LE(MADE_ON_UNIX | VERSION, 12);
  wide.writeUInt16LE(VERSION, 14);
  for (const [at, value] of [[24, count], [32, count], [40, position - start], [48, start]] as const) {
    wide.writeBigUInt64LE(BigInt(value), at);
  }
  const locator = Buffer.alloc(20);
  locator.write("PK\x06\x07", "latin1");
  locator.writeBigUInt64LE(BigInt(position), 8);
  locator.writeUInt32LE(1, 16);
  const narrow = Buffer.alloc(22);
  narrow.write("PK\x05\x06", "latin1");
  narrow.writeUInt16LE(WIDE_16, 8);
  narrow.writeUInt16LE(WIDE_16, 10);
  narrow.writeUInt32LE(WIDE_32, 12);
  narrow.writeUInt32LE(WIDE_32, 16);
  return Buffer.concat([wide, locator, narrow]);
}

/** Return the zip64 extra field. */
function field(...numbers: number[]): Buffer {
  const wide = Buffer.alloc(4 + 8 * numbers.length);
  wide.writeUInt16LE(1, 0);
  wide.writeUInt16LE(8 * numbers.length, 2);
  numbers.forEach((number, index) => wide.writeBigUInt64LE(BigInt(number), 4 + 8 * index));
  return wide;
}

function uint16(number: number): Buffer {
  const two = Buffer.alloc(2);
  two.writeUInt16LE(number);
  return two;
}

/** Return a time in the zip's own format, from 1980 to 2107. The exact time is in the snapshot's list of entries. */
function dosTime(mtimeMs: number): number {
  const time = new Date(Math.min(Math.max(mtimeMs, Date.UTC(1980)), Date.UTC(2107, 11, 31, 23, 59, 58)));
  const date = ((time.getUTCFullYear() - 1980) << 9) | ((time.getUTCMonth() + 1) << 5) | time.getUTCDate();
  const clock = (time.getUTCHours() << 11) | (time.getUTCMinutes() << 5) | (time.getUTCSeconds() >> 1);
  return date * 0x1_0000 + clock;
}

async function writeAll(file: FileHandle, chunk: Buffer, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    const { bytesWritten } = await file.write(chunk, done, chunk.length - done, position + done);
    done += bytesWritten;
  }
}

// The checksum CRC-32: older versions of Node, which this example supports, have no zlib.crc32.
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1;
  return crc;
});

function crc32(chunk: Buffer, before: number): number {
  let crc = ~before;
  for (const byte of chunk) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff]!;
  return ~crc >>> 0;
}
