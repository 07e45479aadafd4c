#!/usr/bin/python3
"""Checks every vector of the classic suite.

It follows sallyport-protocol(7) and shares no code with Sallyport. It needs Debian's
python3-cryptography for X25519, ChaCha20-Poly1305 and the signature schemes;
SipHash, HPKE and SSH's formats are here. It prints "name: verdict" for each
file and ends with status 1 if one is not as the file expects.

    decode.py [DIRECTORY]
"""
import base64
import calendar
import datetime
import hashlib
import hmac
import ipaddress
import pathlib
import re
import struct
import sys

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SUITE = 1
LENGTHS = {1: (448, 832), 2: (1372,)}


class Verdict(Exception):
    """What a server decides; its argument is the vectors' word for it."""


def insist(good, verdict):
    if not good:
        raise Verdict(verdict)


# The files.

def read(path):
    head, body = path.read_text(encoding="ascii").split("\n\n", 1)
    vector = {"name": path.stem, "authorized-key": []}
    for line in head.split("\n"):
        name, value = line.split(": ", 1)
        if name == "authorized-key":
            vector[name].append(value)
        else:
            vector[name] = value
    vector["packet"] = bytes.fromhex(body.replace("\n", ""))
    return vector


def nanoseconds(text):
    """Of a time in RFC 3339 with whole seconds and Z."""
    return calendar.timegm(datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").timetuple()) * 10**9


# The gate.

MASK = 2**64 - 1


def rotate(x, n):
    return (x << n | x >> (64 - n)) & MASK


def sip_round(v):
    a, b, c, d = v
    a = (a + b) & MASK
    b = rotate(b, 13) ^ a
    a = rotate(a, 32)
    c = (c + d) & MASK
    d = rotate(d, 16) ^ c
    a = (a + d) & MASK
    d = rotate(d, 21) ^ a
    c = (c + b) & MASK
    b = rotate(b, 17) ^ c
    c = rotate(c, 32)
    return [a, b, c, d]


def siphash(key, data):
    """SipHash-2-4, 64 bits."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    end = data[len(data) & ~7:]
    blocks = data[:len(data) & ~7] + end + bytes(7 - len(end)) + bytes([len(data) & 255])
    for (m,) in struct.iter_unpack("<Q", blocks):
        v[3] ^= m
        v = sip_round(sip_round(v))
        v[0] ^= m
    v[2] ^= 0xFF
    for _ in range(4):
        v = sip_round(v)
    return struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])


def single(payload):
    for parts in (1, 2, 3):
        n, rest = divmod(len(payload), parts)
        if rest == 0 and any(n in lengths for lengths in LENGTHS.values()):
            insist(payload == payload[:n] * parts, "wrong-length")
            return payload[:n]
    raise Verdict("wrong-length")


def pass_gate(gates, datagram):
    insist(siphash(gates[:16], datagram[8:48]) == datagram[:8], "wrong-gate")
    insist(siphash(gates[16:], datagram[16:]) == datagram[8:16], "wrong-second-gate")


# The server's key.

def unpack(beginning, line):
    if not line.startswith(beginning):
        raise ValueError("another beginning")
    text = line[len(beginning):]
    body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(body).decode().rstrip("=") != text:
        raise ValueError("another spelling")
    if hashlib.sha256(beginning.encode() + body[:-4]).digest()[:4] != body[-4:]:
        raise ValueError("the check does not fit")
    return body[:-4]


def raw(key):
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class Server:
    def __init__(self, line):
        body = unpack("sallyport-key1", line)
        self.suite, self.gates, self.seed = body[0], body[1:33], body[33:]

    def open_key(self):
        self.private = x25519.X25519PrivateKey.from_private_bytes(self.seed)
        self.public = raw(self.private.public_key())

    def check_address(self, line):
        if unpack("sallyport1", line) != bytes([self.suite]) + self.gates + self.public:
            raise ValueError("the address is another server's")


# The seal: RFC 9180, base mode.

def extract(suite, salt, label, data):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + data, "sha256")


def expand(suite, prk, label, info, length):
    info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    out, block = b"", b""
    for i in range(1, 1 + (length + 31) // 32):
        block = hmac.digest(prk, block + info + bytes([i]), "sha256")
        out += block
    return out[:length]


def decapsulate(server, enc):
    try:
        dh = server.private.exchange(x25519.X25519PublicKey.from_public_bytes(enc))
    except ValueError:
        raise Verdict("not-sealed-for-us")
    insist(any(dh), "not-sealed-for-us")
    suite = b"KEM" + struct.pack(">H", 0x0020)
    return expand(suite, extract(suite, b"", b"eae_prk", dh), b"shared_secret", enc + server.public, 32)


def unseal(server, datagram):
    insist(len(datagram) in LENGTHS[SUITE], "not-sealed-for-us")
    enc = datagram[16:48]
    shared = decapsulate(server, enc)
    suite = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, 0x0003)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", b"sallyport spa v1")
    secret = extract(suite, shared, b"secret", b"")
    key, nonce = expand(suite, secret, b"key", context, 32), expand(suite, secret, b"base_nonce", context, 12)
    try:
        return enc, ChaCha20Poly1305(key).decrypt(nonce, datagram[48:], b"")
    except InvalidTag:
        raise Verdict("not-sealed-for-us")


# The plaintext.

ACTIONS = {1: "open", 2: "close", 3: "extend"}
NAME = re.compile(rb"[a-z0-9_-]{1,32}")


class Request:
    def __init__(self, plain):
        self.stamp, action, flags, self.seconds = struct.unpack(">QBBI", plain[:14])
        ipv4, ipv6, self.key = plain[14:18], plain[18:34], plain[34:66]
        insist(1 <= self.stamp < 2**63 and action in ACTIONS and flags < 8, "malformed")
        self.action = ACTIONS[action]
        insist(self.seconds <= 2592000 and not (self.action == "close" and self.seconds), "malformed")
        self.ipv4 = self.address(flags & 1, ipv4, ipaddress.IPv4Address)
        self.ipv6 = self.address(flags & 2, ipv6, ipaddress.IPv6Address)
        insist(not (self.ipv6 and self.ipv6.ipv4_mapped), "malformed")
        self.stated = [a for a in (self.ipv4, self.ipv6) if a is not None]
        self.own = bool(flags & 4)
        insist(self.stated or not self.own, "malformed")
        end = self.read_names(plain)
        self.fields = plain[:end]
        insist(end + 2 <= len(plain), "malformed")
        (length,) = struct.unpack(">H", plain[end:end + 2])
        insist(end + 2 + length <= len(plain), "malformed")
        self.signature, rest = plain[end + 2:end + 2 + length], plain[end + 2 + length:]
        insist(not any(rest), "malformed")

    @staticmethod
    def address(stated, octets, kind):
        insist(stated or not any(octets), "malformed")
        return kind(octets) if stated else None

    def read_names(self, plain):
        self.names, at = [], 67
        for _ in range(plain[66]):
            insist(at < len(plain), "malformed")
            name = plain[at + 1:at + 1 + plain[at]]
            insist(len(name) == plain[at] and NAME.fullmatch(name), "malformed")
            insist(name.decode() not in self.names, "malformed")
            self.names.append(name.decode())
            at += 1 + len(name)
        return at


# SSH's formats.

class Reader:
    """Takes apart SSH's wire form; anything amiss is a ValueError."""

    def __init__(self, data):
        self.data = data

    def take(self, n):
        if n > len(self.data):
            raise ValueError("too short")
        out, self.data = self.data[:n], self.data[n:]
        return out

    def string(self):
        return self.take(struct.unpack(">I", self.take(4))[0])

    def mpint(self):
        b = self.string()
        if not b or b[0] & 0x80 or (b[0] == 0 and (len(b) == 1 or not b[1] & 0x80)):
            raise ValueError("not the one spelling of a positive number")
        return int.from_bytes(b, "big")

    def end(self):
        if self.data:
            raise ValueError("too long")


CURVES = {
    b"nistp256": (ec.SECP256R1, hashes.SHA256),
    b"nistp384": (ec.SECP384R1, hashes.SHA384),
    b"nistp521": (ec.SECP521R1, hashes.SHA512),
}


class PublicKey:
    def __init__(self, blob):
        r = Reader(blob)
        self.kind, self.application = r.string(), None
        hardware = self.kind.startswith(b"sk-")
        if b"ed25519" in self.kind:
            self.key = ed25519.Ed25519PublicKey.from_public_bytes(r.string())
        elif b"ecdsa" in self.kind:
            curve, self.hash = CURVES[r.string()]
            point = r.string()
            if point[:1] != b"\4":
                raise ValueError("a compressed point")
            self.key = ec.EllipticCurvePublicKey.from_encoded_point(curve(), point)
        elif self.kind == b"ssh-rsa":
            e, n = r.mpint(), r.mpint()
            self.key = rsa.RSAPublicNumbers(e, n).public_key()
        else:
            raise ValueError(self.kind)
        if hardware:
            self.application = r.string()
        r.end()

    def verify(self, data, signature):
        """Gives the flags of a hardware key, else None."""
        r, flags = Reader(signature), None
        form, blob = r.string(), r.string()
        if self.application is not None:
            flags, counter = r.take(1), r.take(4)
            data = hashlib.sha256(self.application).digest() + flags + counter + hashlib.sha256(data).digest()
        r.end()
        if self.kind == b"ssh-rsa":
            hash = {b"rsa-sha2-256": hashes.SHA256, b"rsa-sha2-512": hashes.SHA512}[form]
            if len(blob) != (self.key.key_size + 7) // 8:
                raise ValueError("not as long as the modulus")
            self.key.verify(blob, data, padding.PKCS1v15(), hash())
        elif form != self.kind:
            raise ValueError("another format")
        elif b"ecdsa" in self.kind:
            pair = Reader(blob)
            a, b = pair.mpint(), pair.mpint()
            pair.end()
            self.key.verify(utils.encode_dss_signature(a, b), data, ec.ECDSA(self.hash()))
        else:
            self.key.verify(blob, data)
        return flags[0] if flags else None


OPTION = re.compile(r'([a-z-]+)(?:="((?:[^"\\]|\\.)*)")?(,|$)')


class Authorized:
    """One line of authorized_keys."""

    def __init__(self, line):
        rest, blob, _ = line.rsplit(" ", 2)
        self.public = PublicKey(base64.b64decode(blob))
        self.fingerprint = hashlib.sha256(base64.b64decode(blob)).digest()
        options = rest.rpartition(" ")[0]
        self.options = {m[1]: m[2] for m in OPTION.finditer(options) if m[1]}

    def time(self, name):
        text = self.options[name]
        return calendar.timegm(datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").timetuple()) * 10**9

    def may_open(self, service):
        return "services" not in self.options or service in self.options["services"].split(",")

    def allows(self, address):
        if "from" not in self.options:
            return True
        allowed = False
        for pattern in self.options["from"].split(","):
            network = ipaddress.ip_network(pattern.lstrip("!"))
            if network.version == address.version and address in network:
                if pattern.startswith("!"):
                    return False
                allowed = True
        return allowed


# What a server decides.

def string(b):
    return struct.pack(">I", len(b)) + b


def believed(vector, server):
    """Gives the request, its key, flags and tag, if the signature is good."""
    datagram = single(vector["packet"])
    pass_gate(server.gates, datagram)
    enc, plain = unseal(server, datagram)
    request = Request(plain)
    keys = [k for k in map(Authorized, vector["authorized-key"]) if k.fingerprint == request.key]
    insist(keys, "unknown-key")
    message = bytes([1, SUITE]) + hashlib.sha256(server.public).digest() + enc + request.fields
    digest = hashlib.sha512(message).digest()
    structure = b"SSHSIG" + string(b"sallyport-spa") + string(b"") + string(b"sha512") + string(digest)
    try:
        flags = keys[0].public.verify(structure, request.signature)
    except (ValueError, KeyError, InvalidSignature):
        raise Verdict("wrong-signature")
    return request, keys[0], flags, digest[:16]


def freshness(vector, request, tag, remembered):
    mine = [(stamp, t) for key, stamp, t in remembered if key == request.key]
    stamp, now, window = request.stamp, nanoseconds(vector["now"]), int(vector["window"]) * 10**9
    insist(tag not in [t for _, t in mine], "replay")
    if vector["clock"] == "none":
        insist(all(stamp > s for s, _ in mine), "not-rising")
        return
    insist(stamp not in [s for s, _ in mine], "replay")
    insist(now - stamp <= window, "too-old")
    insist(stamp - now <= window, "future")
    if "unclean-start" in vector:
        insist(stamp > nanoseconds(vector["unclean-start"]), "before-start")


def unicast(a):
    return not (a.is_unspecified or a.is_loopback or a.is_multicast or str(a) == "255.255.255.255")


def addresses(vector, request, key):
    source, rule = ipaddress.ip_address(vector["from"]), vector["address"]
    stated = request.stated
    another = any(a != source for a in stated)
    insist(all(map(unicast, stated)), "not-unicast")
    insist(not request.own or source in stated, "elsewhere")
    insist(stated or rule not in ("stated", "both"), "states-none")
    insist(not another or (rule not in ("observed", "both") and "no-address" not in key.options), "states-another")
    insist(all(map(key.allows, [source] + stated)), "not-from")
    return stated or [source]


def policy(vector, request, key, flags):
    insist(unicast(ipaddress.ip_address(vector["from"])), "not-unicast")
    now = nanoseconds(vector["now"])
    insist("not-before" not in key.options or now >= key.time("not-before"), "key-not-now")
    insist("expiry-time" not in key.options or now < key.time("expiry-time"), "key-not-now")
    if flags is not None:
        insist(flags & 1 or "no-touch-required" in key.options, "not-touched")
        insist(flags & 4 or "verify-required" not in key.options, "not-verified")
    granted = addresses(vector, request, key)
    may = [s for s in vector["services"].split() if key.may_open(s)]
    insist(may and all(name in may for name in request.names), "no-service")
    return granted


def said(request, tag):
    """The lines of a file about what a request says."""
    lines = {
        "action": request.action, "stamp": str(request.stamp), "for": str(request.seconds), "names": " ".join(request.names),
        "ipv4": str(request.ipv4 or ""), "ipv6": str(request.ipv6 or ""), "own": "yes" if request.own else "",
        "key": "SHA256:" + base64.b64encode(request.key).decode().rstrip("="), "tag": tag.hex(),
    }
    return lines


def decide(vector, remembered):
    """Gives the verdict and the lines that it comes with, and remembers."""
    server, lines = Server(vector["server-key"]), {}
    server.open_key()
    if "server-address" in vector:
        server.check_address(vector["server-address"])
    try:
        request, key, flags, tag = believed(vector, server)
        lines = said(request, tag)
        freshness(vector, request, tag, remembered)
        granted = policy(vector, request, key, flags)
    except Verdict as v:
        return v.args[0], lines
    remembered.append((request.key, request.stamp, tag))
    lines["granted"] = " ".join(map(str, granted))
    return request.action, lines


ANSWERS = ("action", "stamp", "for", "names", "ipv4", "ipv6", "own", "key", "tag", "granted")


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    directory = directory if directory.is_dir() else directory.parent
    vectors = {path.stem: read(path) for path in sorted(directory.glob("*.txt"))}
    mine = [v for v in vectors.values() if Server(v["server-key"]).suite == SUITE]
    wrong = 0
    for vector in mine:
        remembered = []
        if "after" in vector:
            decide(vectors[vector["after"]], remembered)
        verdict, lines = decide(vector, remembered)
        differing = [a for a in ANSWERS if lines.get(a, "") != vector.get(a, "")]
        note = ""
        if verdict != vector["expect"] or differing:
            wrong += 1
            note = " (expected %s; differing: %s)" % (vector["expect"], " ".join(differing) or "nothing else")
        print("%s: %s%s" % (vector["name"], verdict, note))
    if wrong or not mine:
        print("%d of %d are not as expected" % (wrong, len(mine)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
