// Converts file names to names of zip entries, by the rules of docs/snapshot.md.
//
// A file name is a sequence of bytes. Here it is a string with one character for each byte (`latin1`), so that every
// name is possible and none changes on the way.

// One character of UTF-8, or (in the group) a byte that is not part of a character.
const CHARACTERS = new RegExp(
  "[\\x00-\\x7f]|[\\xc2-\\xdf][\\x80-\\xbf]|\\xe0[\\xa0-\\xbf][\\x80-\\xbf]|[\\xe1-\\xec\\xee\\xef][\\x80-\\xbf]{2}" +
    "|\\xed[\\x80-\\x9f][\\x80-\\xbf]|\\xf0[\\x90-\\xbf][\\x80-\\xbf]{2}|[\\xf1-\\xf3][\\x80-\\xbf]{3}" +
    "|\\xf4[\\x80-\\x8f][\\x80-\\xbf]{2}|([\\x80-\\xff])",
  "g",
);
// A `%` that would look like a code; control characters and backslashes; blanks and dots at the end of a path
// component; the colon of a drive letter.
const UNSAFE = /%(?=[0-9A-Fa-f]{2})|[\x00-\x1f\x7f\\]|[ .]+$|(?<=^[A-Za-z]):/g;

/** Return the entry's name in UTF-8, for a path below a cell's directory. */
export function entryName(path: string): Buffer {
  const safe = path.split("/").map((part) => withCodes(part.replace(UNSAFE, codes)));
  return Buffer.from(safe.join("/"), "latin1");
}

/** Return a path as text for JSON. Bytes that are not UTF-8 become `\xXX`. */
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
