#!/usr/bin/python3
"""Checks every vector of one-time passwords.

It follows sallyport-otp(7), shares no code with Sallyport, and needs nothing but
Python. It prints "name: good" or "name: refused" for each file and ends with
status 1 if one is not as the file says.

    decode.py [DIRECTORY]
"""
import hashlib
import hmac
import ipaddress
import math
import pathlib
import struct
import sys

FIRST, REST, TAG = 1, 2, 3


class Refused(Exception):
    """Why a knock is not safe to use."""


def read(path):
    lines = path.read_text(encoding="ascii").splitlines()
    return dict(line.split(": ", 1) for line in lines)


def ports_of(pool):
    """The pool as a list that rises."""
    ports, last = [], -1
    for span in pool.split():
        low, _, high = span.partition("-")
        low, high = int(low), int(high or low)
        if low <= last + 1 or high < low:
            raise Refused("the ranges do not rise, or touch, or have port 0")
        ports += range(low, high + 1)
        last = high
    return ports


def block(secret, door, number, address, what, counter):
    if address is None:
        family, octets = 0, b""
    else:
        family, octets = address.version, address.packed
    message = struct.pack(">BB", 1, len(door)) + door + struct.pack(">QB", number, family)
    message += octets.ljust(16, b"\0") + bytes([what, counter])
    return hmac.digest(secret, message, "sha256")


def draw(chosen, n, pool, *inputs):
    """Adds n ports that were not chosen yet."""
    fair = 65536 - 65536 % len(pool)
    wanted = len(chosen) + n
    for counter in range(256):
        for (x,) in struct.iter_unpack(">H", block(*inputs, counter)):
            if len(chosen) == wanted:
                return
            port = pool[x % len(pool)]
            if x < fair and port not in chosen:
                chosen.append(port)


def sequence(vector, secret, door):
    pool, steps = ports_of(vector["pool"]), int(vector["steps"])
    address = None if vector["from"] == "any" else ipaddress.ip_address(vector["from"])
    bits = -math.log2(3) + sum(math.log2(len(pool) - i) for i in range(0 if address is None else 1, steps))
    if len(pool) < 1024 or bits < 40 or not 3 <= steps <= 32:
        raise Refused("too easy to guess")
    if int(vector["time-step"]) < 1:
        raise Refused("no time step")
    number = int(vector["time"]) // int(vector["time-step"])
    ports = []
    draw(ports, 1, pool, secret, door, number, None, FIRST)
    draw(ports, steps - 1, pool, secret, door, number, address, REST)
    return {
        "number": str(number), "ports": " ".join(map(str, ports)), "bits": "%.2f" % bits,
        "tag": block(secret, door, number, address, TAG, 0)[:16].hex(),
    }


def code(vector, secret, door):
    """RFC 6238 with SHA-1 and 30 s."""
    digits, base = int(vector["digits"]), int(vector["base"])
    if digits not in (6, 8) or base < 100 or base % 100 or base + 50 * digits > 65536:
        raise Refused("no ports for such a code")
    number = int(vector["time"]) // 30
    mac = hmac.digest(secret, struct.pack(">Q", number), "sha1")
    at = mac[-1] & 15
    value = int.from_bytes(mac[at:at + 4], "big") & 0x7FFFFFFF
    text = str(value % 10**digits).zfill(digits)
    pairs = [int(text[i:i + 2]) for i in range(0, digits, 2)]
    return {
        "number": str(number), "code": text, "ports": " ".join(str(base + 100 * i + p) for i, p in enumerate(pairs)),
        "bits": "%.2f" % (digits * math.log2(10) - math.log2(3)),
        "tag": block(secret, door, number, None, TAG, 0)[:16].hex(),
    }


ANSWERS = ("number", "code", "ports", "bits", "tag")


def decide(vector):
    secret, door = bytes.fromhex(vector["secret"]), vector["door"].encode()
    try:
        if not 16 <= len(secret) <= 64 or not 1 <= len(door) <= 32:
            raise Refused("lengths")
        return "good", (code if "digits" in vector else sequence)(vector, secret, door)
    except Refused:
        return "refused", {}


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    directory = directory if directory.is_dir() else directory.parent
    vectors = {path.stem: read(path) for path in sorted(directory.glob("*.txt"))}
    wrong = 0
    for name, vector in vectors.items():
        verdict, lines = decide(vector)
        differing = [a for a in ANSWERS if lines.get(a, "") != vector.get(a, "")]
        note = ""
        if verdict != vector["expect"] or differing:
            wrong += 1
            note = " (expected %s; differing: %s)" % (vector["expect"], " ".join(differing) or "nothing else")
        print("%s: %s%s" % (name, verdict, note))
    if wrong or not vectors:
        print("%d of %d are not as expected" % (wrong, len(vectors)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
