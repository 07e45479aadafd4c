#!/usr/bin/env node
// Checks every vector of the post-quantum suite.
//
// It follows sallyport-protocol(7) and shares no code with Sallyport. ML-KEM-768
// is that of @noble/post-quantum; X25519, ChaCha20-Poly1305, hashes and the
// signature schemes are those of Node; SipHash, HPKE, X-Wing and SSH's formats are here.
// It prints "name: verdict" for each file and ends with status 1 if one is not
// as the file expects.
//
//     decode.mjs [DIRECTORY]
import { createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey, diffieHellman, verify } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { isIPv4, BlockList } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { ml_kem768 } from '@noble/post-quantum/ml-kem.js';

const SUITE = 2;
const LENGTHS = [448, 832, 1372];
const MINE = 1372;
const ENC = 1120;
const LATTICE = 1184; // bytes of ML-KEM-768's encapsulation key
const CIPHERTEXT = 1088;
const SECOND = 1_000_000_000n;

class Verdict extends Error {}

function insist(good, verdict) {
  if (!good) throw new Verdict(verdict);
}

const hash = (name, ...parts) => createHash(name).update(Buffer.concat(parts)).digest();

// The files.

function read(directory, file) {
  const text = readFileSync(join(directory, file), 'ascii');
  const cut = text.indexOf('\n\n');
  const vector = { name: file.slice(0, -'.txt'.length), 'authorized-key': [] };
  for (const line of text.slice(0, cut).split('\n')) {
    const at = line.indexOf(': ');
    const [name, value] = [line.slice(0, at), line.slice(at + 2)];
    if (name === 'authorized-key') vector[name].push(value);
    else vector[name] = value;
  }
  vector.packet = Buffer.from(text.slice(cut + 2).replaceAll('\n', ''), 'hex');
  return vector;
}

const nanoseconds = (text) => BigInt(Date.parse(text)) * 1_000_000n;

// The gate.

function sipRounds(v, n) {
  const word = (x) => BigInt.asUintN(64, x);
  const turn = (x, by) => word((x << by) | (x >> (64n - by)));
  for (let i = 0; i < n; i++) {
    v[0] = word(v[0] + v[1]);
    v[2] = word(v[2] + v[3]);
    v[1] = turn(v[1], 13n) ^ v[0];
    v[3] = turn(v[3], 16n) ^ v[2];
    v[0] = turn(v[0], 32n);
    v[2] = word(v[2] + v[1]);
    v[0] = word(v[0] + v[3]);
    v[1] = turn(v[1], 17n) ^ v[2];
    v[3] = turn(v[3], 21n) ^ v[0];
    v[2] = turn(v[2], 32n);
  }
}

function siphash(key, data) {
  const [k0, k1] = [key.readBigUInt64LE(0), key.readBigUInt64LE(8)];
  const v = [k0 ^ 0x736f6d6570736575n, k1 ^ 0x646f72616e646f6dn, k0 ^ 0x6c7967656e657261n, k1 ^ 0x7465646279746573n];
  const blocks = Buffer.alloc((Math.floor(data.length / 8) + 1) * 8);
  data.copy(blocks);
  blocks[blocks.length - 1] = data.length & 255;
  for (let at = 0; at < blocks.length; at += 8) {
    const m = blocks.readBigUInt64LE(at);
    v[3] ^= m;
    sipRounds(v, 2);
    v[0] ^= m;
  }
  v[2] ^= 0xffn;
  sipRounds(v, 4);
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(v[0] ^ v[1] ^ v[2] ^ v[3]);
  return out;
}

function single(payload) {
  for (const parts of [1, 2, 3]) {
    const length = payload.length / parts;
    if (!LENGTHS.includes(length)) continue;
    for (let i = 1; i < parts; i++) {
      insist(payload.subarray(0, length).equals(payload.subarray(i * length, (i + 1) * length)), 'wrong-length');
    }
    return payload.subarray(0, length);
  }
  throw new Verdict('wrong-length');
}

function passGate(gates, datagram) {
  insist(siphash(gates.subarray(0, 16), datagram.subarray(8, 48)).equals(datagram.subarray(0, 8)), 'wrong-gate');
  insist(siphash(gates.subarray(16), datagram.subarray(16)).equals(datagram.subarray(8, 16)), 'wrong-second-gate');
}

// The server's key.

function unpack(beginning, line) {
  if (!line.startsWith(beginning)) throw new Error('another beginning');
  const text = line.slice(beginning.length);
  const bytes = Buffer.from(text, 'base64url');
  if (bytes.toString('base64url') !== text) throw new Error('another spelling');
  const body = bytes.subarray(0, -4);
  if (!hash('sha256', Buffer.from(beginning), body).subarray(0, 4).equals(bytes.subarray(-4))) {
    throw new Error('the check does not fit');
  }
  return body;
}

const suiteOf = (vector) => unpack('sallyport-key1', vector['server-key'])[0];

// Node reads raw X25519 and Ed25519 keys behind a constant beginning in DER.
const X25519_PRIVATE = Buffer.from('302e020100300506032b656e04220420', 'hex');
const X25519_PUBLIC = Buffer.from('302a300506032b656e032100', 'hex');
const ED25519_PUBLIC = Buffer.from('302a300506032b6570032100', 'hex');
const spki = (beginning, raw) => createPublicKey({ key: Buffer.concat([beginning, raw]), format: 'der', type: 'spki' });

function serverOf(vector) {
  const body = unpack('sallyport-key1', vector['server-key']);
  const seeds = createHash('shake256', { outputLength: 96 }).update(body.subarray(33)).digest();
  const lattice = ml_kem768.keygen(seeds.subarray(0, 64));
  const x = createPrivateKey({ key: Buffer.concat([X25519_PRIVATE, seeds.subarray(64)]), format: 'der', type: 'pkcs8' });
  const xPublic = createPublicKey(x).export({ format: 'der', type: 'spki' }).subarray(X25519_PUBLIC.length);
  const server = { gates: body.subarray(1, 33), lattice, x, xPublic, public: Buffer.concat([lattice.publicKey, xPublic]) };
  if (vector['server-address']) {
    const address = unpack('sallyport1', vector['server-address']);
    if (!address.equals(Buffer.concat([body.subarray(0, 33), server.public]))) throw new Error("the address is another server's");
  }
  if (server.public.length !== LATTICE + 32) throw new Error('the public key has another length');
  return server;
}

// The seal: HPKE in base mode with X-Wing.

function two(n) {
  const b = Buffer.alloc(2);
  b.writeUInt16BE(n);
  return b;
}

const HPKE = Buffer.concat([Buffer.from('HPKE'), two(0x647a), two(0x0001), two(0x0003)]);
const hmac = (key, ...parts) => createHmac('sha256', key).update(Buffer.concat(parts)).digest();
const extract = (salt, label, data) => hmac(salt, Buffer.from('HPKE-v1'), HPKE, Buffer.from(label), data);

function expand(prk, label, context, length) {
  const info = Buffer.concat([two(length), Buffer.from('HPKE-v1'), HPKE, Buffer.from(label), context]);
  return hmac(prk, info, Buffer.from([1])).subarray(0, length); // 32 bytes at most are asked for
}

function decapsulate(server, enc) {
  const [ct, share] = [enc.subarray(0, CIPHERTEXT), enc.subarray(CIPHERTEXT)];
  let dh;
  try {
    dh = diffieHellman({ privateKey: server.x, publicKey: spki(X25519_PUBLIC, share) });
  } catch {
    throw new Verdict('not-sealed-for-us'); // what Node does with a zero result
  }
  insist(dh.some((b) => b !== 0), 'not-sealed-for-us');
  const ss = ml_kem768.decapsulate(ct, server.lattice.secretKey);
  return hash('sha3-256', ss, dh, share, server.xPublic, Buffer.from('5c2e2f2f5e5c', 'hex'));
}

function unseal(server, datagram) {
  insist(datagram.length === MINE, 'not-sealed-for-us');
  const enc = datagram.subarray(16, 16 + ENC);
  const none = Buffer.alloc(0);
  const shared = decapsulate(server, enc);
  const context = Buffer.concat([
    Buffer.from([0]), extract(none, 'psk_id_hash', none), extract(none, 'info_hash', Buffer.from('sallyport spa v1')),
  ]);
  const secret = extract(shared, 'secret', none);
  const aead = createDecipheriv('chacha20-poly1305', expand(secret, 'key', context, 32), expand(secret, 'base_nonce', context, 12), { authTagLength: 16 });
  aead.setAuthTag(datagram.subarray(-16));
  const plain = aead.update(datagram.subarray(16 + ENC, -16));
  try {
    aead.final();
  } catch {
    throw new Verdict('not-sealed-for-us');
  }
  return { enc, plain };
}

// The plaintext.

const ACTIONS = [undefined, 'open', 'close', 'extend'];

function ipv6Text(b) {
  const words = Array.from({ length: 8 }, (_, i) => b.readUInt16BE(2 * i).toString(16));
  return new URL(`http://[${words.join(':')}]`).hostname.slice(1, -1); // RFC 5952
}

function parseRequest(plain) {
  const good = (x) => insist(x, 'malformed');
  const flags = plain[9];
  const r = { stamp: plain.readBigUInt64BE(0), action: ACTIONS[plain[8]], seconds: plain.readUInt32BE(10), key: plain.subarray(34, 66), names: [] };
  good(r.stamp > 0n && r.stamp < 1n << 63n && r.action && flags < 8);
  good(r.seconds <= 2592000 && !(r.action === 'close' && r.seconds));
  const [ipv4, ipv6] = [plain.subarray(14, 18), plain.subarray(18, 34)];
  good(flags & 1 || ipv4.every((b) => b === 0));
  good(flags & 2 || ipv6.every((b) => b === 0));
  good(!(flags & 2) || ipv6.subarray(0, 12).toString('hex') !== '00000000000000000000ffff');
  r.ipv4 = flags & 1 ? Array.from(ipv4).join('.') : '';
  r.ipv6 = flags & 2 ? ipv6Text(ipv6) : '';
  r.own = Boolean(flags & 4);
  r.stated = [r.ipv4, r.ipv6].filter(Boolean);
  good(!r.own || r.stated.length);
  let at = 67;
  for (let i = 0; i < plain[66]; i++) {
    good(at < plain.length && at + 1 + plain[at] <= plain.length);
    const name = plain.subarray(at + 1, at + 1 + plain[at]).toString('latin1');
    good(/^[a-z0-9_-]{1,32}$/.test(name) && !name.includes('\n') && !r.names.includes(name));
    r.names.push(name);
    at += 1 + name.length;
  }
  r.fields = plain.subarray(0, at);
  good(at + 2 <= plain.length);
  const end = at + 2 + plain.readUInt16BE(at);
  good(end <= plain.length && plain.subarray(end).every((b) => b === 0));
  r.signature = plain.subarray(at + 2, end);
  return r;
}

// SSH's formats.

class Reader {
  constructor(data) { this.data = data; }

  take(n) {
    if (n > this.data.length) throw new Error('too short');
    const out = this.data.subarray(0, n);
    this.data = this.data.subarray(n);
    return out;
  }

  string() { return this.take(this.take(4).readUInt32BE(0)); }

  // mpint gives the number in so many bytes.
  mpint(size) {
    let b = this.string();
    if (!b.length || b[0] & 0x80 || (b[0] === 0 && !(b[1] & 0x80))) throw new Error('not the one spelling of a positive number');
    if (b[0] === 0) b = b.subarray(1);
    if (b.length > size) throw new Error('too large');
    return Buffer.concat([Buffer.alloc(size - b.length), b]);
  }

  end() {
    if (this.data.length) throw new Error('too long');
  }
}

const CURVES = {
  nistp256: { crv: 'P-256', size: 32, hash: 'sha256' },
  nistp384: { crv: 'P-384', size: 48, hash: 'sha384' },
};

function publicKey(blob) {
  const r = new Reader(blob);
  const k = { kind: r.string().toString() };
  if (k.kind.includes('ed25519')) {
    k.key = spki(ED25519_PUBLIC, r.string());
  } else {
    k.curve = CURVES[r.string()];
    const point = r.string();
    if (point[0] !== 4 || point.length !== 1 + 2 * k.curve.size) throw new Error('not an uncompressed point');
    const half = (from) => point.subarray(from, from + k.curve.size).toString('base64url');
    k.key = createPublicKey({ key: { kty: 'EC', crv: k.curve.crv, x: half(1), y: half(1 + k.curve.size) }, format: 'jwk' });
  }
  if (k.kind.startsWith('sk-')) k.application = r.string();
  r.end();
  return k;
}

// checkSignature gives the flags of a hardware key, else undefined.
function checkSignature(k, data, signature) {
  const r = new Reader(signature);
  const [format, blob] = [r.string().toString(), r.string()];
  let flags;
  if (k.application) {
    const state = r.take(5);
    flags = state[0];
    data = Buffer.concat([hash('sha256', k.application), state, hash('sha256', data)]);
  }
  r.end();
  insist(format === k.kind, 'wrong-signature');
  if (!k.curve) {
    insist(verify(null, data, k.key, blob), 'wrong-signature');
    return flags;
  }
  const pair = new Reader(blob);
  const both = Buffer.concat([pair.mpint(k.curve.size), pair.mpint(k.curve.size)]);
  pair.end();
  insist(verify(k.curve.hash, data, { key: k.key, dsaEncoding: 'ieee-p1363' }, both), 'wrong-signature');
  return flags;
}

function authorized(line) {
  const words = line.split(' ');
  const blob = Buffer.from(words.at(-2), 'base64');
  const options = {};
  if (words.length > 3) {
    for (const m of words.slice(0, -3).join(' ').matchAll(/([a-z-]+)(?:="((?:[^"\\]|\\.)*)")?(?:,|$)/g)) options[m[1]] = m[2] ?? '';
  }
  return { fingerprint: hash('sha256', blob), blob, options };
}

// keyTime reads YYYYMMDDHHMMSSZ.
const keyTime = (text) => nanoseconds(text.replace(/^(....)(..)(..)(..)(..)(..)Z$/, '$1-$2-$3T$4:$5:$6Z'));

const family = (address) => (isIPv4(address) ? 'ipv4' : 'ipv6');

function inside(address, network) {
  const [base, bits] = network.split('/');
  if (family(base) !== family(address)) return false;
  const list = new BlockList();
  list.addSubnet(base, Number(bits), family(base));
  return list.check(address, family(address));
}

function allows(key, address) {
  if (!('from' in key.options)) return true;
  const patterns = key.options.from.split(',');
  const hit = (not) => patterns.some((p) => p.startsWith('!') === not && inside(address, p.replace('!', '')));
  return hit(false) && !hit(true);
}

// What a server decides.

function string(text) {
  const b = Buffer.from(text);
  return Buffer.concat([two(0), two(b.length), b]);
}

function believed(vector) {
  const server = serverOf(vector);
  const datagram = single(vector.packet);
  passGate(server.gates, datagram);
  const { enc, plain } = unseal(server, datagram);
  const request = parseRequest(plain);
  const key = vector['authorized-key'].map(authorized).find((k) => k.fingerprint.equals(request.key));
  insist(key, 'unknown-key');
  const digest = hash('sha512', Buffer.from([1, SUITE]), hash('sha256', server.public), enc, request.fields);
  const structure = Buffer.concat([Buffer.from('SSHSIG'), string('sallyport-spa'), string(''), string('sha512'), string(digest)]);
  let flags;
  try {
    flags = checkSignature(publicKey(key.blob), structure, request.signature);
  } catch {
    throw new Verdict('wrong-signature');
  }
  return { request, key, flags, tag: digest.subarray(0, 16).toString('hex') };
}

function freshness(vector, { request, tag }, remembered) {
  const mine = remembered.filter((m) => m.key.equals(request.key));
  const [now, window] = [nanoseconds(vector.now), BigInt(vector.window) * SECOND];
  insist(!mine.some((m) => m.tag === tag), 'replay');
  if (vector.clock === 'none') {
    insist(mine.every((m) => request.stamp > m.stamp), 'not-rising');
    return;
  }
  insist(!mine.some((m) => m.stamp === request.stamp), 'replay');
  insist(now - request.stamp <= window, 'too-old');
  insist(request.stamp - now <= window, 'future');
  insist(!vector['unclean-start'] || request.stamp > nanoseconds(vector['unclean-start']), 'before-start');
}

const nobody = ['0.0.0.0/32', '127.0.0.0/8', '224.0.0.0/4', '255.255.255.255/32', '::/128', '::1/128', 'ff00::/8'];
const unicast = (address) => !nobody.some((network) => inside(address, network));

function addresses(vector, request, key) {
  const { from, address: rule } = vector;
  const another = request.stated.some((a) => a !== from);
  insist(request.stated.every(unicast), 'not-unicast');
  insist(!request.own || request.stated.includes(from), 'elsewhere');
  insist(request.stated.length || !['stated', 'both'].includes(rule), 'states-none');
  insist(!another || !(['observed', 'both'].includes(rule) || 'no-address' in key.options), 'states-another');
  insist([from, ...request.stated].every((a) => allows(key, a)), 'not-from');
  return request.stated.length ? request.stated : [from];
}

function policy(vector, { request, key, flags }) {
  const now = nanoseconds(vector.now);
  const o = key.options;
  insist(unicast(vector.from), 'not-unicast');
  insist(!o['not-before'] || now >= keyTime(o['not-before']), 'key-not-now');
  insist(!o['expiry-time'] || now < keyTime(o['expiry-time']), 'key-not-now');
  if (flags !== undefined) {
    insist(flags & 1 || 'no-touch-required' in o, 'not-touched');
    insist(flags & 4 || !('verify-required' in o), 'not-verified');
  }
  const granted = addresses(vector, request, key);
  const may = vector.services.split(' ').filter((s) => !o.services || o.services.split(',').includes(s));
  insist(may.length && request.names.every((name) => may.includes(name)), 'no-service');
  return granted;
}

const said = ({ request: r, tag }) => ({
  action: r.action, stamp: String(r.stamp), for: String(r.seconds), names: r.names.join(' '), ipv4: r.ipv4, ipv6: r.ipv6,
  own: r.own ? 'yes' : '', key: `SHA256:${r.key.toString('base64').replace('=', '')}`, tag,
});

function decide(vector, remembered) {
  let lines = {};
  try {
    const b = believed(vector);
    lines = said(b);
    freshness(vector, b, remembered);
    lines.granted = policy(vector, b).join(' ');
    remembered.push({ key: b.request.key, stamp: b.request.stamp, tag: b.tag });
    return { verdict: b.request.action, lines };
  } catch (e) {
    if (!(e instanceof Verdict)) throw e;
    return { verdict: e.message, lines };
  }
}

const ANSWERS = ['action', 'stamp', 'for', 'names', 'ipv4', 'ipv6', 'own', 'key', 'tag', 'granted'];

function main() {
  const directory = process.argv[2] ?? dirname(fileURLToPath(import.meta.url));
  const vectors = new Map();
  for (const file of readdirSync(directory).sort()) {
    if (file.endsWith('.txt')) vectors.set(file.slice(0, -4), read(directory, file));
  }
  const mine = [...vectors.values()].filter((v) => suiteOf(v) === SUITE);
  let wrong = 0;
  for (const vector of mine) {
    const remembered = [];
    if (vector.after) decide(vectors.get(vector.after), remembered);
    const { verdict, lines } = decide(vector, remembered);
    const differing = ANSWERS.filter((a) => (lines[a] ?? '') !== (vector[a] ?? ''));
    let note = '';
    if (verdict !== vector.expect || differing.length) {
      wrong++;
      note = ` (expected ${vector.expect}; differing: ${differing.join(' ') || 'nothing else'})`;
    }
    console.log(`${vector.name}: ${verdict}${note}`);
  }
  if (wrong || !mine.length) {
    console.error(`${wrong} of ${mine.length} are not as expected`);
    process.exitCode = 1;
  }
}

main();
