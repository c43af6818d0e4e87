// Names of files as names of zip entries: docs/snapshot.md says which change, and how.
//
// What a file is called are bytes. Here they are in a string with a character for each (`latin1`): no name is refused,
// and none is changed by the way.

// A character of UTF-8, or (in a group) a byte that is none of any.
const CHARACTERS = new RegExp(
  "[\\x00-\\x7f]|[\\xc2-\\xdf][\\x80-\\xbf]|\\xe0[\\xa0-\\xbf][\\x80-\\xbf]|[\\xe1-\\xec\\xee\\xef][\\x80-\\xbf]{2}" +
    "|\\xed[\\x80-\\x9f][\\x80-\\xbf]|\\xf0[\\x90-\\xbf][\\x80-\\xbf]{2}|[\\xf1-\\xf3][\\x80-\\xbf]{3}" +
    "|\\xf4[\\x80-\\x8f][\\x80-\\xbf]{2}|([\\x80-\\xff])",
  "g",
);
// A `%` that could be taken for a code; control characters and backslashes; blanks and dots at the end of a part; the
// colon of a drive.
const UNSAFE = /%(?=[0-9A-Fa-f]{2})|[\x00-\x1f\x7f\\]|[ .]+$|(?<=^[A-Za-z]):/g;

/** The entry's name, in UTF-8, for a path below a cell's directory. */
export function entryName(path: string): Buffer {
  const safe = path.split("/").map((part) => withCodes(part.replace(UNSAFE, codes)));
  return Buffer.from(safe.join("/"), "latin1");
}

/** A path as JSON can hold it: bytes that are no UTF-8 become `\xXX`. */
export function shownPath(path: string): string {
  const text = path.replace(CHARACTERS, (whole, stray?: string) => (stray ? `\\x${hex(stray).toLowerCase()}` : whole));
  return Buffer.from(text, "latin1").toString();
}

function withCodes(part: string): string {
  return part.replace(CHARACTERS, (whole, stray?: string) => (stray ? codes(stray) : whole));
}

function codes(bytes: string): string {
  return [...bytes].map((byte) => `%${hex(byte)}`).join("");
}

function hex(byte: string): string {
  return byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0");
}
