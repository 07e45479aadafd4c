// Checks every vector of encoded/, the messages that travel in port numbers.
//
// It follows sallyport-encoded(7) and shares no code with Sallyport. All that it
// needs is WebCrypto, which every browser has too. It prints "name: verdict" for each
// file and ends with status 1 if one is not as the file expects.
//
//     node encoded.mjs [DIRECTORY]
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const { subtle } = globalThis.crypto;
const text = new TextEncoder();

function read(path) {
  const [head, body] = readFileSync(path, "utf8").split("\n\n");
  const vector = {};
  for (const line of head.split("\n")) {
    const colon = line.indexOf(": ");
    vector[line.slice(0, colon)] = line.slice(colon + 2);
  }
  vector.ports = body.trim().split(/\s+/).map(Number);
  return vector;
}

function shapeOf(vector) {
  const [base, span, payload] = ["base", "span", "payload"].map((name) => Number(vector[name] ?? 0));
  const size = 8 + 30 + (payload > 0 ? 1 + payload : 0) + 12;
  for (let width = 11; width >= 4; width--) {
    const steps = Math.ceil((8 * size) / width);
    if (steps * 2 ** width <= span) return { base, span, payload, size, width, steps };
  }
  throw new Error("the span is too small");
}

// collect gives the parts as a string of bits, or nothing.
function collect(shape, ports) {
  const spare = shape.steps * shape.width - 8 * shape.size;
  let parts = new Map();
  for (const port of ports) {
    const at = port - shape.base;
    const index = Math.floor(at / 2 ** shape.width);
    const symbol = at % 2 ** shape.width;
    if (at < 0 || index >= shape.steps) continue;
    if (index === shape.steps - 1 && symbol % 2 ** spare !== 0) continue;
    if (parts.has(index) && parts.get(index) !== symbol) parts = new Map();
    parts.set(index, symbol);
    if (parts.size === shape.steps) {
      return [...Array(shape.steps).keys()].map((i) => parts.get(i).toString(2).padStart(shape.width, "0")).join("");
    }
  }
}

async function open(shape, vector, bits) {
  const sealed = new Uint8Array(shape.size);
  for (let i = 0; i < shape.size; i++) sealed[i] = parseInt(bits.slice(8 * i, 8 * i + 8), 2);
  const secret = await subtle.importKey("raw", Buffer.from(vector.secret, "hex"), "HKDF", false, ["deriveKey"]);
  const info = text.encode("sallyport encoded v1\0" + vector.door);
  const key = await subtle.deriveKey(
    { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info }, secret, { name: "AES-GCM", length: 256 }, false, ["decrypt"]);
  const iv = new Uint8Array(12);
  iv.set(sealed.subarray(0, 8));
  const additionalData = new Uint8Array([1, shape.base >> 8, shape.base & 255, shape.span >> 8, shape.span & 255, shape.payload]);
  const tag = Buffer.concat([sealed.subarray(shape.size - 12), sealed.subarray(0, 4)]).toString("hex");
  const plain = await subtle.decrypt({ name: "AES-GCM", iv, additionalData, tagLength: 96 }, key, sealed.subarray(8));
  return { plain: new Uint8Array(plain), tag };
}

const number = (bytes) => bytes.reduce((sum, b) => sum * 256 + b, 0);
const empty = (bytes) => bytes.every((b) => b === 0);

function address(bytes, family) {
  if (family === 0) return undefined;
  if (family === 4) return bytes.slice(0, 4).join(".");
  const groups = [...Array(8).keys()].map((i) => number(bytes.slice(2 * i, 2 * i + 2)).toString(16)).join(":");
  return new URL(`http://[${groups}]/`).hostname.slice(1, -1);
}

// parse gives what a plaintext says, or nothing where it breaks a rule.
function parse(shape, plain) {
  const action = plain[0] & 15, family = plain[0] >> 4;
  const time = number(plain.slice(1, 7)), seconds = number(plain.slice(7, 10));
  const where = plain.slice(10, 26), size = { 0: 0, 4: 4, 6: 16 }[family];
  const bits = plain[26], proto = plain[27], port = number(plain.slice(28, 30));
  const mapped = family === 6 && empty(where.slice(0, 10)) && where[10] === 255 && where[11] === 255;
  let input = new Uint8Array();
  if (action < 1 || action > 3 || size === undefined || mapped || !empty(where.slice(size))) return;
  if (time < 1 || time > 9223372036854 || seconds > 2592000 || (action === 2 && seconds > 0)) return;
  if (bits > 127 || (family === 4 && bits > 31)) return;
  if ((proto === 0) !== (port === 0) || ![0, 6, 17].includes(proto)) return;
  if (shape.payload > 0) {
    if (plain[30] > shape.payload || !empty(plain.slice(31 + plain[30]))) return;
    if (action !== 1 && plain[30] > 0) return;
    input = plain.slice(31, 31 + plain[30]);
  }
  const said = {
    action: ["", "open", "close", "extend"][action], time: String(time), for: seconds || undefined, address: address(where, family),
    bits: bits || undefined, port: port ? `${port}/${proto === 6 ? "tcp" : "udp"}` : undefined,
    input: Buffer.from(input).toString("hex") || undefined,
  };
  return Object.fromEntries(Object.entries(said).filter(([, v]) => v !== undefined).map(([k, v]) => [k, String(v)]));
}

// judge gives the verdict; a good one must also say what the file says.
async function judge(vector, heard) {
  const shape = shapeOf(vector);
  const bits = collect(shape, vector.ports);
  if (bits === undefined) return ["incomplete"];
  let opened;
  try {
    opened = await open(shape, vector, bits);
  } catch {
    return ["wrong-seal"];
  }
  const said = parse(shape, opened.plain);
  if (said === undefined) return ["malformed"];
  if (heard.has(opened.tag) || heard.has(said.time)) return ["replay"];
  const off = Number(said.time) - Number(vector.now);
  if (Math.abs(off) > 1000 * Number(vector.window)) return [off < 0 ? "too-old" : "future"];
  for (const [name, value] of Object.entries({ ...said, tag: opened.tag })) {
    if (vector[name] !== value) return [`good, but ${name} is ${value}`];
  }
  return ["good", opened.tag, said.time];
}

const dir = process.argv[2] ?? join(import.meta.dirname, "encoded");
let failed = false;
for (const file of readdirSync(dir).filter((name) => name.endsWith(".txt")).sort()) {
  const vector = read(join(dir, file));
  const before = vector.after ? await judge(read(join(dir, vector.after + ".txt")), new Set()) : [];
  const heard = new Set(before.slice(1));
  const [verdict] = await judge(vector, heard);
  console.log(`${file.slice(0, -4)}: ${verdict}`);
  if (verdict !== vector.expect) failed = true;
}
process.exit(failed ? 1 : 0);
