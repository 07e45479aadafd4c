// Runs the script of knock.html without a browser against every vector that a client
// can be tried with, and prints "name: good" or "name: refused" for each, or what is
// wrong. WebCrypto is the browser's own interface.
//
//     node vectors.mjs KNOCK.HTML DIRECTORY-OF-OTP DIRECTORY-OF-ENCODED
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const [page, otp, encoded] = process.argv.slice(2);
const script = /<script>([^]*)<\/script>/.exec(readFileSync(page, "utf8"))[1];
const names = ["Wrong", "readLine", "parseAddress", "readHost", "pool", "otpPorts", "codeAt", "codePorts", "shapeOf", "encode", "refusedPort", "checkShared", "base32"];
const web = new Function(`${script}; return { ${names.join(", ")} }`)();

function read(path) {
  const [head, body = ""] = readFileSync(path, "utf8").split("\n\n");
  const vector = Object.fromEntries(head.trim().split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]));
  if (body) vector.ports = body.trim().split(/\s+/).join(" ");
  return vector;
}

const bytes = (hex = "") => new Uint8Array((hex.match(/../g) ?? []).map((b) => parseInt(b, 16)));

async function oneTime(v) {
  const knock = { door: v.door, secret: bytes(v.secret), within: 10 };
  if (v.digits) {
    web.checkShared(knock);
    const code = await web.codeAt(knock.secret, Number(v.digits), Number(v.time));
    if (v.code && code !== v.code) return `code ${code}`;
    return web.codePorts(Number(v.base), Number(v.digits), code).join(" ");
  }
  Object.assign(knock, { pool: web.pool(v.pool.replaceAll(" ", ",") + "/tcp", "pool"), steps: Number(v.steps), step: Number(v["time-step"]), anyAddress: v.from === "any" });
  return (await web.otpPorts(knock, Number(v.time), web.parseAddress(v.from))).join(" ");
}

// parts gives the message's ports in their order, and its first 8 bytes, which are
// the nonce: a vector has them in its ports alone.
function parts(v, knock) {
  const { width } = web.shapeOf(knock);
  const found = new Map();
  for (const port of v.ports.split(" ").map(Number)) found.set(Math.floor((port - knock.first.port) / 2 ** width), port);
  const ports = [...found.entries()].sort((a, b) => a[0] - b[0]).map((entry) => entry[1]);
  const row = ports.map((port) => ((port - knock.first.port) % 2 ** width).toString(2).padStart(width, "0")).join("");
  return { ports: ports.join(" "), nonce: new Uint8Array(row.slice(0, 64).match(/.{8}/g).map((b) => parseInt(b, 2))) };
}

async function message(v) {
  const knock = { door: v.door, secret: bytes(v.secret), within: 30, first: { port: Number(v.base), proto: "tcp" }, span: Number(v.span), payload: Number(v.payload ?? 0) };
  const { ports, nonce } = parts(v, knock);
  const [port, proto] = (v.port ?? "").split("/");
  const asked = {
    action: v.action, time: Number(v.time), seconds: Number(v.for ?? 0), address: v.address && web.parseAddress(v.address), bits: Number(v.bits ?? 0),
    port: v.port && { port: Number(port), proto }, payload: bytes(v.input),
  };
  const got = (await web.encode(knock, asked, nonce)).join(" ");
  return got === ports ? "good" : `ports ${got}`;
}

async function verdict(vector, answer) {
  try {
    const got = await answer(vector);
    return got === "good" || (vector.expect === "good" && got === vector.ports) ? "good" : got;
  } catch (err) {
    return err instanceof web.Wrong ? "refused" : String(err);
  }
}

function* files(dir) {
  for (const file of readdirSync(dir).filter((name) => name.endsWith(".txt")).sort()) yield [file.slice(0, -4), read(join(dir, file))];
}

for (const [name, vector] of files(otp)) console.log(`otp/${name}: ${await verdict(vector, oneTime)}`);
// The others are what a server must refuse, which no client makes.
for (const [name, vector] of files(encoded)) {
  if (vector.expect === "good") console.log(`encoded/${name}: ${await verdict(vector, message)}`);
}

// What people type, a line each: kind, text.
for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const [kind, text] = JSON.parse(line);
  try {
    const value = { host: web.readHost, line: (t) => (web.readLine(t), "good"), bad: (t) => String(web.refusedPort([Number(t)])), address: (t) => web.parseAddress(t)?.bytes.join(".") ?? "none" }[kind](text);
    console.log(`${line}: ${value}`);
  } catch (err) {
    console.log(`${line}: ${err instanceof web.Wrong ? "refused" : err}`);
  }
}
