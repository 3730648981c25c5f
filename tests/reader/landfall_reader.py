#!/usr/bin/env python3
"""An independent reader of Landfall vaults, written from docs/FORMAT.md alone.

It shares no code with the project, so that a vault it can restore is proof that the document is complete.
Section numbers in the comments are those of FORMAT.md. It reads a vault in a local directory; it writes nothing there.

    landfall_reader.py list    --vault DIR --recovery-key FILE
    landfall_reader.py restore --vault DIR --recovery-key FILE --machine M --seq N --disk NAME --out FILE

Exit codes: 0 done, 1 the vault, the key or the request is refused (one line on stderr says why), 2 usage.
"""
import argparse
import base64
import datetime
import functools
import hmac
import json
import os
import re
import struct
import sys
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

FORMAT = 1
MAX_CHUNK, MAX_PAGE, MAX_SEGMENT = 262144, 4194304, 67108864
POINT, CHECKPOINT, GENERATION, HEARTBEAT, REVOCATION, JOB, DRILL = 1, 2, 3, 4, 5, 6, 7
ZERO_ID = bytes(16)

class Refused(Exception):
    """What was read is not what the format says."""

def check(condition, why):
    if not condition:
        raise Refused(why)

# --- Section 3: the key schedule --------------------------------------------------------------------------------------

def expand(key, label, context, n):
    """X(): HKDF-Expand with SHA-256."""
    info, out, block = label.encode() + b"\0" + context, b"", b""
    while len(out) < n:
        block = hmac.digest(key, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:n]

def digest(data, key=None):
    return blake3(data, key=key).digest() if key else blake3(data).digest()

def unseal(key, aad, sealed, what):
    """Each key seals one message, so the nonce is zero."""
    try:
        return AESGCM(key).decrypt(bytes(12), bytes(sealed), aad)
    except InvalidTag:
        raise Refused(f"{what}: does not open: a wrong key, or it was changed") from None

P25519 = 2**255 - 19
Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER_Y = {0, 1, P25519 - 1, Y8, P25519 - Y8}

def small_order(point):
    return (int.from_bytes(point, "little") & (2**255 - 1)) % P25519 in SMALL_ORDER_Y

def verify(public, label, message, signature, what):
    try:
        check(not small_order(public) and not small_order(signature[:32]), f"{what}: small-order point in the signature")
        Ed25519PublicKey.from_public_bytes(public).verify(signature, label.encode() + b"\0" + digest(message))
    except (InvalidSignature, ValueError):
        raise Refused(f"{what}: the signature is not right") from None

def ed25519_public(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()

# --- Bytes -------------------------------------------------------------------------------------------------------------

class Cursor:
    """Takes fields off the front of some bytes; refuses what does not fit."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, n):
        check(n <= len(self.data) - self.at, f"{self.what}: cut short")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "little")

    def column(self, count, letter):
        """Numbers as a column; the letter is that of `struct`."""
        return struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(f"<{letter}")))

    def ids(self, count, size):
        data = bytes(self.take(count * size))
        return [data[i : i + size] for i in range(0, len(data), size)]

    def end(self):
        check(self.at == len(self.data), f"{self.what}: bytes left over")

def decode(codec, raw_length, data, limit, what):
    """Sections 6 and 7: 0 as it is, 1 one Zstandard frame."""
    check(codec in (0, 1), f"{what}: unknown codec {codec}")
    check(raw_length <= limit, f"{what}: too long")
    if codec == 1:
        try:
            data = zstandard.ZstdDecompressor().stream_reader(bytes(data)).read(raw_length + 1)
        except zstandard.ZstdError as e:
            raise Refused(f"{what}: {e}") from None
    check(len(data) == raw_length, f"{what}: raw length is not right")
    return data

def packed_block(data, limit, what):
    c = Cursor(data, what)
    codec, raw_length = c.number(1), c.number(4)
    return decode(codec, raw_length, c.data[c.at :], limit, what)

def hexed(text, n, what):
    check(isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{2 * n}}}", text), f"{what}: not {n} bytes of hex")
    return bytes.fromhex(text)

# --- Section 11: the recovery key, as a file or as shares --------------------------------------------------------------

def read_recovery_key(path, passphrase_file):
    """-> vault id, seed"""
    f = json.loads(Path(path).read_text())
    check(f.get("landfall") == "recovery-key" and f.get("format") == FORMAT, "not a recovery key file of format 1")
    vault_id = hexed(f["vault_id"], 16, "vault_id")
    if "seed" in f:
        return vault_id, hexed(f["seed"], 32, "seed")
    check(passphrase_file, "this recovery key needs --passphrase-file")
    passphrase = Path(passphrase_file).read_bytes().split(b"\n")[0].removesuffix(b"\r")
    kdf = f["kdf"]
    check(kdf["name"] == "argon2id" and kdf["memory_kib"] <= 1 << 20 and kdf["iterations"] <= 64, "kdf: unknown or too costly")
    key = Argon2id(salt=hexed(kdf["salt"], 16, "salt"), length=32, iterations=kdf["iterations"],
                   lanes=kdf["lanes"], memory_cost=kdf["memory_kib"]).derive(passphrase)
    return vault_id, unseal(key, b"landfall/1/passphrase\0" + vault_id, hexed(f["sealed"], 48, "sealed"), "recovery key")

def gf_multiply(a, b):
    product = 0
    while b:
        product, a, b = product ^ (a if b & 1 else 0), (a << 1) ^ (0x11D if a & 0x80 else 0), b >> 1
    return product

def gf_inverse(a):
    return functools.reduce(gf_multiply, [a] * 254)

def read_shares(path):
    """Lagrange's interpolation at zero, over all shares given -> vault id, seed"""
    sets, points = set(), {}
    for line in Path(path).read_text().split():
        text = line.upper().replace("-", "")
        share = base64.b32decode(text[3:] + "====")
        check(text == "LF1" + base64.b32encode(share).decode().rstrip("="), "share: mistyped")
        c = Cursor(share, "share")
        version, vault_id, set_id, threshold, count, x, y = c.number(1), c.take(16), c.take(8), *c.take(3), c.take(40)
        check(c.take(4) == digest(b"landfall/1/share\0" + share[:-4])[:4], "share: mistyped")
        c.end()
        check(version == 1 and 0 < x <= count and 0 < threshold <= count, "share: fields do not fit")
        sets.add((vault_id, set_id, threshold, count))
        check(points.setdefault(x, y) == y, "share: two shares with one x")
    check(len(sets) == 1, "shares: none, or of different sets")
    vault_id, _, threshold, _ = sets.pop()
    check(len(points) >= threshold, f"shares: {len(points)} of {threshold} needed")
    secret = bytearray(40)
    for x, y in points.items():
        weight = functools.reduce(gf_multiply, (gf_multiply(o, gf_inverse(o ^ x)) for o in points if o != x), 1)
        for j in range(40):
            secret[j] ^= gf_multiply(weight, y[j])
    seed, tag = bytes(secret[:32]), bytes(secret[32:])
    check(tag == digest(b"landfall/1/shares\0" + vault_id + seed)[:8], "shares: they do not give the secret back")
    return vault_id, seed

# --- Sections 4 and 5: the vault and its wrapped keys ------------------------------------------------------------------

class SiteKey:
    def __init__(self, plain):
        self.index, self.fingerprint, self.signing_seed = plain[:32], plain[32:64], plain[64:]
        self.page_key = self.derive("page-id", b"", 32)

    def derive(self, label, context, n):
        return expand(self.fingerprint, "landfall/1/" + label, context, n)

    def machine_id(self, name):
        return self.derive("machine-id", name.encode(), 16)

class Vault:
    def __init__(self, root, vault_id, seed):
        self.root, self.id = Path(root), vault_id
        self.x25519 = X25519PrivateKey.from_private_bytes(expand(seed, "landfall/1/recovery/x25519", b"", 32))
        recovery_public = self.x25519.public_key().public_bytes_raw()
        self.recipient = digest(recovery_public)[:8]
        self.seed = seed
        outer = json.loads(self.read("vault.json"))
        check(outer.get("landfall") == "vault" and outer.get("format") == FORMAT, "vault.json: not a vault of format 1")
        root_public = ed25519_public(expand(seed, "landfall/1/recovery/ed25519", b"", 32))
        verify(root_public, "landfall/1/vault", outer["signed"].encode(), hexed(outer["signature"], 64, "signature"), "vault.json")
        v = json.loads(outer["signed"])
        check(v["requires"] == [], f"vault.json: unsupported: {v['requires']}")
        check(hexed(v["vault_id"], 16, "vault_id") == vault_id, "the recovery key is of another vault")
        check(v["root_public"] == root_public.hex(), "vault.json: another root key")
        check({"id": self.recipient.hex(), "x25519": recovery_public.hex()} in v["recipients"], "vault.json: not a recipient")
        self.region_bytes, self.max_chunk = v["region_bytes"], min(MAX_CHUNK, v["chunking"]["max"])
        self.signers = {hexed(k["id"], 8, "id"): hexed(k["ed25519"], 32, "ed25519") for k in v["site_keys"]}
        for key_id, public in self.signers.items():
            check(key_id == digest(public)[:8], "vault.json: a site key's id is not of its key")
        self.site_key, self.epoch_key = functools.cache(self.site_key), functools.cache(self.epoch_key)
        self.segment = functools.lru_cache(16)(self.segment)

    def read(self, name):
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise Refused(f"{name}: not in the vault") from None

    def names(self, folder, pattern):
        """The names in a folder that the format knows, sorted."""
        folder = self.root / folder
        return sorted(n for n in (os.listdir(folder) if folder.is_dir() else []) if re.fullmatch(pattern, n))

    def signer(self, key_id, what):
        check(key_id in self.signers, f"{what}: signed by a key that vault.json does not name")
        return self.signers[key_id]

    def unwrap(self, name, kind, length, fields):
        """Section 5. `fields` are bytes 40..72, as the object's name says."""
        b = self.read(name)
        check(len(b) == 112 + length + 64, f"{name}: length")
        check(b[:12] == b"LANDWRAP" + bytes([FORMAT, 0, kind, 0]) and b[12:16] == struct.pack("<I", length), f"{name}: header")
        check(b[16:72] == self.id + self.recipient + fields, f"{name}: holds another key than its name says")
        if kind == 1:
            check(b[56:72] != ZERO_ID, f"{name}: zero epoch id")
        else:
            check(b[72:80] == b[56:64], f"{name}: signed by another site key")
        verify(self.signer(b[72:80], name), "landfall/1/wrap", b[:-64], b[-64:], name)
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        try:
            return suite.decrypt(b[80:-64], self.x25519, info=b"landfall/1/wrap\0" + b[:80])
        except InvalidTag:
            raise Refused(f"{name}: does not open with this recovery key") from None

    def site_key(self, key_id):
        public = self.signer(key_id, "site key")
        name = f"keys/site-{key_id.hex()}-{self.recipient.hex()}"
        key = SiteKey(self.unwrap(name, 2, 112, ZERO_ID + key_id + bytes(8)))
        check(ed25519_public(key.signing_seed) == public, f"{name}: holds another signing key")
        return key

    def epoch_key(self, domain_id, epoch_id):
        name = f"epochs/{domain_id.hex()}/{epoch_id.hex()}-{self.recipient.hex()}"
        return self.unwrap(name, 1, 48, domain_id + epoch_id)

    def open_frame(self, frame, key, label, frame_id, epoch_id, raw_length, codec, fingerprint_key, limit):
        """Section 6."""
        what = f"frame {frame_id.hex()[:16]}"
        check(len(frame) > 32 and 1 <= raw_length <= limit, f"{what}: length")
        aad = struct.pack("<H", FORMAT) + self.id + epoch_id + frame_id + struct.pack("<IB", raw_length, codec)
        data = unseal(expand(key, label, frame_id + frame[:16], 32), aad, frame[16:], what)
        data = decode(codec, raw_length, data, limit, what)
        check(digest(data, fingerprint_key) == frame_id, f"{what}: these bytes have another id")
        return data

    def segment(self, segment_id):
        """Section 7 -> the object, and its directory as {offset: (id, stored length, raw length, codec, epoch id)}."""
        what = f"segment {segment_id.hex()[:16]}"
        b = self.read(f"segments/{segment_id.hex()[:2]}/{segment_id.hex()}")
        check(64 <= len(b) <= MAX_SEGMENT and digest(b) == segment_id, f"{what}: damaged")
        directory_length, count, frames_length, signer, magic = struct.unpack("<IIQ8s8s", b[-32:])
        check(b[:32] == b"LANDSEGM" + bytes([FORMAT]) + bytes(7) + self.id and magic == b"LANDSEND", f"{what}: header or trailer")
        check(32 + frames_length + directory_length + 32 == len(b) and directory_length >= 32, f"{what}: lengths")
        salted = b[32 + frames_length : -32]
        key = expand(self.site_key(signer).index, "landfall/1/directory", salted[:16], 32)
        c = Cursor(packed_block(unseal(key, b[:32] + b[-32:], salted[16:], what), MAX_SEGMENT, what), what)
        epochs = c.ids(c.number(2), 16)
        check(epochs[:1] == [ZERO_ID], f"{what}: first epoch is not zero")
        check(c.number(4) == count, f"{what}: number of frames")
        columns = [c.ids(count, 32), *(c.column(count, letter) for letter in "IIBH")]
        c.end()
        directory, at = {}, 32
        for frame_id, stored, raw, codec, epoch in zip(*columns):
            check(epoch < len(epochs), f"{what}: epoch index")
            directory[at] = frame_id, stored, raw, codec, epochs[epoch]
            at += stored
        check(at == 32 + frames_length, f"{what}: frames and lengths do not agree")
        return b, directory

    def machine_ids(self):
        return [bytes.fromhex(n) for n in self.names("machines", "[0-9a-f]{32}")]

# --- Section 8: records -------------------------------------------------------------------------------------------------

class Record:
    def __init__(self, vault, name, kind, machine_id, timeline=0, seq=0, generation=None):
        b, self.name, self.vault = vault.read(name), name, vault
        check(len(b) >= 224, f"{name}: cut short")
        (magic, version, self.kind, zero, body_length, vault_id, self.machine_id, self.timeline, self.parent, self.seq,
         self.generation, self.previous, inline_length, inline_hash, signer, zero8) = struct.unpack("<8sHBBI16s16sIIQQ32sQ32s8sQ", b[:160])
        check((magic, version, zero, zero8, vault_id) == (b"LANDRECD", FORMAT, 0, 0, vault.id), f"{name}: header")
        agrees = (self.kind, self.machine_id, self.timeline, self.seq) == (kind, machine_id, timeline, seq)
        check(agrees and generation in (None, self.generation), f"{name}: another record than its name says")
        check(224 + body_length + inline_length == len(b) and body_length >= 32, f"{name}: lengths")
        check(kind in (POINT, DRILL) or inline_length == 0, f"{name}: inline frames")
        signed, signature, self.inline = b[: 160 + body_length], b[160 + body_length : 224 + body_length], b[224 + body_length :]
        verify(vault.signer(signer, name), "landfall/1/record", signed, signature, name)
        check(digest(self.inline) == inline_hash, f"{name}: inline frames")
        self.digest, self.site = digest(signed), vault.site_key(signer)
        key = expand(self.site.index, "landfall/1/record", b[160:176], 32)
        body = packed_block(unseal(key, b[:160], signed[176:], name), 1 << 30, name)
        if kind in (GENERATION, HEARTBEAT, REVOCATION, JOB, DRILL):
            self.meta = json.loads(bytes(body))
        else:
            self.read_body(Cursor(body, name))
        named = {HEARTBEAT: "gateway", JOB: "job", DRILL: "job"}.get(kind)
        of = bytes.fromhex(self.meta[named]) if named else self.site.machine_id(self.meta["machine"])
        check(of == machine_id, f"{name}: of another machine, gateway or job")

    def read_body(self, c):
        name = self.name
        self.meta = json.loads(bytes(c.take(c.number(4))))
        segments = c.number(4)
        self.segments = [(bytes(c.take(32)), c.number(8)) for _ in range(segments)]
        check(all(a[0] < b[0] for a, b in zip(self.segments, self.segments[1:])), f"{name}: segments are not ascending")
        disks, self.pages = self.meta.get("disks", []), {}
        check(c.number(4) == len(disks), f"{name}: number of disks")
        for disk in disks:
            regions = c.number(4)
            refs = [(c.number(4), self.page_reference(c)) for _ in range(regions)]
            check(all(a[0] < b[0] for a, b in zip(refs, refs[1:])), f"{name}: regions are not ascending")
            check(disk["name"] not in self.pages, f"{name}: two disks with one name")
            self.pages[disk["name"]] = refs
        self.inline_pages = c.take(c.number(4))
        c.end()

    @staticmethod
    def page_reference(c):
        tag = c.number(1)
        check(tag in (0, 1), f"{c.what}: unknown page reference")
        if tag == 0:
            return "inline", c.number(4), c.number(4)
        return "frame", bytes(c.take(32)), c.number(4), c.number(4), c.number(4), c.number(4), c.number(1)

    def disk(self, name):
        found = [d for d in self.meta["disks"] if d["name"] == name]
        check(found, f"{self.name}: no disk {name}")
        return found[0]

    def page(self, reference):
        """-> the raw bytes of a page"""
        if reference[0] == "inline":
            _, offset, length = reference
            check(offset + length <= len(self.inline_pages), f"{self.name}: inline page")
            return packed_block(self.inline_pages[offset : offset + length], MAX_PAGE, self.name)
        _, page_id, index, offset, stored, raw, codec = reference
        check(index < len(self.segments), f"{self.name}: segment index")
        segment_id, size = self.segments[index]
        b, directory = self.vault.segment(segment_id)
        check(len(b) == size, f"{self.name}: size of a segment")
        check(directory.get(offset) == (page_id, stored, raw, codec, ZERO_ID), f"{self.name}: page is not in the directory")
        return self.vault.open_frame(b[offset : offset + stored], self.site.index, "landfall/1/page", page_id, ZERO_ID,
                                     raw, codec, self.site.page_key, MAX_PAGE)

class Machine:
    """All records of a machine, checked, and the chain through them."""

    def __init__(self, vault, machine_id):
        self.vault, self.id, self.points, self.checkpoints = vault, machine_id, {}, {}
        top = f"machines/{machine_id.hex()}"
        for t in vault.names(f"{top}/timelines", "[0-9a-f]{8}"):
            for kind, folder, into in (POINT, "points", self.points), (CHECKPOINT, "checkpoints", self.checkpoints):
                for n in vault.names(f"{top}/timelines/{t}/{folder}", "[0-9a-f]{16}"):
                    timeline, seq = int(t, 16), int(n, 16)
                    into[timeline, seq] = Record(vault, f"{top}/timelines/{t}/{folder}/{n}", kind, machine_id, timeline, seq)
        for (timeline, seq), p in self.points.items():
            before, behind = self.points.get((p.parent, seq - 1)), self.checkpoints.get((p.parent, seq - 1))
            if before:
                check(p.previous == before.digest, f"{p.name}: does not follow the point before")
            elif behind:
                check(p.previous == behind.previous, f"{p.name}: does not follow the checkpoint before")
            else:
                check(seq == 1 and p.previous == bytes(32), f"{p.name}: the point before is missing")
        for at, c in self.checkpoints.items():
            check(at not in self.points or c.previous == self.points[at].digest, f"{c.name}: not of the point with its seq")

    def name(self):
        return next(iter((self.points or self.checkpoints).values())).meta["machine"]

    def generations(self):
        """The records of who wrote: no restore needs them."""
        folder = f"machines/{self.id.hex()}/generations"
        for n in self.vault.names(folder, "[0-9a-f]{16}"):
            yield Record(self.vault, f"{folder}/{n}", GENERATION, self.id, generation=int(n, 16))

    def history(self, timeline, seq, base_seq):
        """Section 9: the records that make up a disk, oldest first: a checkpoint if there is one, and the points after it."""
        steps = []
        while seq >= base_seq:
            if (timeline, seq) in self.checkpoints:
                steps.append(self.checkpoints[timeline, seq])
                break
            check((timeline, seq) in self.points, f"point {seq} is missing")
            steps.append(self.points[timeline, seq])
            timeline, seq = steps[-1].parent, seq - 1
        return steps[::-1]

    def restore(self, timeline, seq, disk_name, out):
        check((timeline, seq) in self.points, f"no point {seq} on timeline {timeline}")
        disk = self.points[timeline, seq].disk(disk_name)
        check(not disk["excluded"], f"{disk_name} is excluded at this point: it has no content")
        steps = self.history(timeline, seq, disk["base_seq"])
        for step in steps:
            size = step.disk(disk_name)["size"]
            out.truncate(size)  # what is cut off and comes back is zero
            for region, reference in step.pages[disk_name]:
                Page(self, step, step.page(reference)).apply(out, region * self.vault.region_bytes, size)
        return disk["size"], steps

# --- Section 9: pages ---------------------------------------------------------------------------------------------------

class Page:
    def __init__(self, machine, record, raw):
        self.machine, self.vault, self.record, self.what = machine, machine.vault, record, f"a page of {record.name}"
        self.domain_id = record.site.derive("domain-id", record.meta["domain"].encode(), 16)
        self.chunk_key = record.site.derive("fingerprint", self.domain_id, 32)
        c = Cursor(raw, self.what)
        check(c.number(1) == 1, f"{self.what}: version")
        self.sources = []
        for _ in range(c.number(2)):
            tag = c.number(1)
            check(tag in (0, 1), f"{self.what}: unknown source")
            self.sources.append(("segment", bytes(c.take(32))) if tag == 0 else ("inline", c.number(4), c.number(8)))
        self.epochs = c.ids(c.number(2), 16)
        n = c.number(4)
        self.chunks = list(zip(c.ids(n, 32), *(c.column(n, letter) for letter in "HIIIBH")))
        n = c.number(4)
        starts, lengths, kinds = c.column(n, "I"), c.column(n, "I"), c.column(n, "B")
        n = kinds.count(0)
        data = iter(list(zip(c.column(n, "I"), c.column(n, "I"))))
        c.end()
        check(all(k in (0, 1, 2) for k in kinds), f"{self.what}: unknown kind of entry")
        self.entries = [(s, l, next(data) if k == 0 else None) for s, l, k in zip(starts, lengths, kinds)]

    def apply(self, out, region_start, size):
        end = 0
        for start, length, data in self.entries:
            check(start >= end and length >= 1, f"{self.what}: entries overlap")
            end = start + length
            check(end <= self.vault.region_bytes and region_start + end <= size, f"{self.what}: entry outside of the disk")
            if data:
                chunk_index, first = data
                check(chunk_index < len(self.chunks), f"{self.what}: chunk index")
                chunk = self.chunk(*self.chunks[chunk_index])
                check(first + length <= len(chunk), f"{self.what}: entry outside of its chunk")
                out.seek(region_start + start)
                out.write(chunk[first : first + length])
            else:
                zero(out, region_start + start, length)

    def chunk(self, chunk_id, source, offset, stored, raw, codec, epoch):
        check(source < len(self.sources) and epoch < len(self.epochs), f"{self.what}: source or epoch index")
        tag, *where = self.sources[source]
        epoch_id = self.epochs[epoch]
        if tag == "segment":
            check(where[0] in {s for s, _ in self.record.segments}, f"{self.what}: a segment that the record does not list")
            b, directory = self.vault.segment(where[0])
            check(directory.get(offset) == (chunk_id, stored, raw, codec, epoch_id), f"{self.what}: chunk is not in the directory")
        else:
            check(tuple(where) in self.machine.points, f"{self.what}: point of inline frames is missing")
            b = self.machine.points[tuple(where)].inline
        check(offset + stored <= len(b), f"{self.what}: frame outside of its source")
        return self.vault.open_frame(b[offset : offset + stored], self.vault.epoch_key(self.domain_id, epoch_id), "landfall/1/frame",
                                     chunk_id, epoch_id, raw, codec, self.chunk_key, self.vault.max_chunk)

def zero(out, at, length):
    """Zeroes, written only where something else stands."""
    while length:
        n = min(length, 1 << 20)
        out.seek(at)
        if out.read(n) != bytes(n):
            out.seek(at)
            out.write(bytes(n))
        at, length = at + n, length - n

# --- The command --------------------------------------------------------------------------------------------------------

def beside_the_points(vault):
    """Section 8: heartbeats and revocations. No restore needs them."""
    for n in vault.names("gateways", "[0-9a-f]{32}"):
        yield Record(vault, f"gateways/{n}", HEARTBEAT, bytes.fromhex(n), generation=0)
    for m in vault.names("revoked", "[0-9a-f]{32}"):
        for n in vault.names(f"revoked/{m}", "[0-9a-f]{16}"):
            yield Record(vault, f"revoked/{m}/{n}", REVOCATION, bytes.fromhex(m), seq=int(n, 16), generation=0)

def jobs(vault):
    """Section 8: the newest record of each job. Each carries the digest of the one before."""
    for j in vault.names("control/jobs", "[0-9a-f]{32}"):
        before, newest = ZERO_ID * 2, None
        for seq, n in enumerate(sorted(vault.names(f"control/jobs/{j}", "[0-9a-f]{16}")), 1):
            check(int(n, 16) == seq, f"control/jobs/{j}: record {seq} is missing")
            newest = Record(vault, f"control/jobs/{j}/{n}", JOB, bytes.fromhex(j), seq=seq, generation=0)
            check(newest.previous == before, f"{newest.name}: does not follow the one before")
            before = newest.digest
        yield newest

def drills(vault):
    """Section 8: the report of each drill, and the picture behind it, which the recovery key opens."""
    for n in vault.names("control/drills", "[0-9a-f]{16}-[0-9a-f]{32}"):
        begun, job = int(n[:16], 16), bytes.fromhex(n[17:])
        r = Record(vault, f"control/drills/{n}", DRILL, job, seq=begun, generation=0)
        said, picture = r.meta["picture"], None
        at = datetime.datetime.fromisoformat(r.meta["begun"])
        check(begun == (at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1), f"{r.name}: begun at another time")
        check((said is None) == (len(r.inline) == 0), f"{r.name}: picture")
        if said:
            key = expand(vault.seed, "landfall/1/recovery/picture", bytes(r.inline[:16]), 32)
            picture = unseal(key, vault.id + job, r.inline[16:], f"{r.name}: picture")
            check((said["bytes"], said["blake3"]) == (len(picture), digest(picture).hex()), f"{r.name}: another picture than it says")
        yield r, picture

def list_points(vault, args):
    for r in jobs(vault):
        print(f"job {r.meta['job']}  {r.meta['kind']} {r.meta['machine']}  {r.meta['state']}")
    for r, picture in drills(vault):
        probes = " ".join(f"{p['probe']}={p['passed_ms']}" for p in r.meta["probes"])
        print(f"drill {r.meta['job']}  {r.meta['machine']}  {r.meta['result']}  rto {r.meta['rto_ms']}  {probes}  picture {len(picture or b'')}")
    for r in beside_the_points(vault):
        if r.kind == HEARTBEAT:
            print(f"gateway {r.meta['gateway']}  alive {r.meta['renewed']}  holds {len(r.meta['machines'])}")
        else:
            print(f"revoked {r.meta['machine']}  enrolments until {r.meta['until']}")
    machines = [m for m in (Machine(vault, i) for i in vault.machine_ids()) if m.points]
    for m in sorted(machines, key=Machine.name):
        print(f"{m.name()}  {m.id.hex()}")
        for g in m.generations():
            print(f"  generation {g.generation}  claimed {g.meta['claimed']}")
        for (timeline, seq), p in sorted(m.points.items()):
            disks = " ".join(f"{d['name']}={'excluded' if d['excluded'] else d['size']}" for d in p.meta["disks"])
            mark = "  checkpoint" if (timeline, seq) in m.checkpoints else ""
            print(f"  timeline {timeline} seq {seq}  {p.meta['source_time']}  {p.meta['consistency']}  inline {len(p.inline)}  {disks}{mark}")

def restore(vault, args):
    for key_id in vault.signers:
        machine_id = vault.site_key(key_id).machine_id(args.machine)
        if machine_id in vault.machine_ids():
            break
    else:
        raise Refused(f"no machine {args.machine}")
    machine = Machine(vault, machine_id)
    timeline = args.timeline or max((t for t, s in machine.points if s == args.seq), default=1)
    check(not os.path.lexists(args.out), f"{args.out} exists")
    unfinished = f"{args.out}.unfinished"
    with open(unfinished, "w+b") as out:
        size, steps = machine.restore(timeline, args.seq, args.disk, out)
    os.rename(unfinished, args.out)
    kind = "checkpoint" if steps[0].kind == CHECKPOINT else "point"
    print(f"{args.out}: {size} bytes, from {len(steps)} records, the first is {kind} {steps[0].seq}")

def main():
    p = argparse.ArgumentParser(description="Reads a Landfall vault with nothing but the recovery key.")
    commands = p.add_subparsers(dest="command", required=True)
    for name in "list", "restore":
        c = commands.add_parser(name)
        c.add_argument("--vault", required=True, help="a local directory")
        key = c.add_mutually_exclusive_group(required=True)
        key.add_argument("--recovery-key")
        key.add_argument("--shares", help="a file with shares of the recovery key, one a line")
        c.add_argument("--passphrase-file", help="its first line, if the recovery key file is sealed")
    c.add_argument("--machine", required=True)
    c.add_argument("--timeline", type=int, help="if a point of this number is on several: else the newest")
    c.add_argument("--seq", required=True, type=int)
    c.add_argument("--disk", required=True)
    c.add_argument("--out", required=True, help="a file that does not exist")
    args = p.parse_args()
    try:
        secret = read_shares(args.shares) if args.shares else read_recovery_key(args.recovery_key, args.passphrase_file)
        (list_points if args.command == "list" else restore)(Vault(args.vault, *secret), args)
    except (Refused, OSError, ValueError, KeyError) as e:
        sys.exit(f"landfall_reader: {e if not isinstance(e, KeyError) else f'field {e} is missing'}")

if __name__ == "__main__":
    main()
