"""Makes golden.rs: what FORMAT.md says for fixed inputs, by implementations that are not ours.

    pip install pyhpke==0.6.5 cryptography==50.0.2 blake3==1.0.11 argon2-cffi
    python golden.py > golden.rs && rustfmt golden.rs

HKDF, AES-GCM, X25519 and Ed25519 are OpenSSL's (by cryptography), BLAKE3 is by the blake3 package, Argon2id is the
reference implementation (by argon2-cffi). HPKE is pyhpke's, with a fixed ephemeral key, and is opened again by OpenSSL's.
GF(2^8) is written out below.
"""

import base64
import struct

from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, KEMKeyPair


def run(start, length):
    return bytes((start + i) % 256 for i in range(length))


VAULT, SEED = run(0xA0, 16), run(0x00, 32)
INDEX, FINGERPRINT, SIGNING = run(0x20, 32), run(0x40, 32), run(0x60, 32)
EPOCH_KEY, EPOCH, EPHEMERAL, SALT = run(0x80, 32), run(0xB0, 16), run(0xC0, 32), run(0xE0, 16)
SET, PASSPHRASE = run(0xF0, 8), b"correct horse battery staple"
DATA = bytes(i * i % 251 for i in range(300))


def out(name, value, doc):
    text = value if isinstance(value, str) else value.hex()
    print(f"/// {doc}\npub(crate) const {name}: &str = \"{text}\";")


def x(key, label, context, length):
    return HKDFExpand(hashes.SHA256(), length, label + b"\0" + context).derive(key)


def seal(key, aad, message):
    return AESGCM(key).encrypt(bytes(12), message, aad)


def sign(seed, label, message):
    return Ed25519PrivateKey.from_private_bytes(seed).sign(label + b"\0" + blake3(message).digest())


def public(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def multiply(a, b):
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def share(secret, threshold, shares, x_):
    y = []
    for j, constant in enumerate(secret):
        coefficients = [constant] + [(37 * j + 101 * degree + 11) % 256 for degree in range(1, threshold)]
        value, power = 0, 1
        for coefficient in coefficients:
            value ^= multiply(coefficient, power)
            power = multiply(power, x_)
        y.append(value)
    body = bytes([1]) + VAULT + SET + bytes([threshold, shares, x_]) + bytes(y)
    body += blake3(b"landfall/1/share\0" + body).digest()[:4]
    digits = base64.b32encode(body).decode().rstrip("=")
    return "-".join(["LF1"] + [digits[i : i + 5] for i in range(0, len(digits), 5)])


def wrap(kind, domain, key, plain, private):
    header = b"LANDWRAP" + struct.pack("<HBBI", 1, kind, 0, len(plain) + 16) + VAULT + RECIPIENT + domain + key + SITE_ID
    info = b"landfall/1/wrap\0" + header
    suite = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)
    ephemeral = X25519PrivateKey.from_private_bytes(EPHEMERAL)
    pair = KEMKeyPair(KEMKey.from_pyca_cryptography_key(ephemeral), KEMKey.from_pyca_cryptography_key(ephemeral.public_key()))
    enc, context = suite.create_sender_context(
        KEMKey.from_pyca_cryptography_key(private.public_key()), info=info, eks=pair
    )
    sealed = context.seal(plain)
    other = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    assert other.decrypt(enc + sealed, private, info) == plain
    unsigned = header + enc + sealed
    return unsigned + sign(SIGNING, b"landfall/1/wrap", unsigned)


def frame(key, label, epoch, id_):
    aad = struct.pack("<H", 1) + VAULT + epoch + id_ + struct.pack("<IB", 1000, 1)
    return SALT + seal(x(key, label, id_ + SALT, 32), aad, DATA)


print("//! Made by golden.py, which is beside this file and says how; do not edit.\n")
private = X25519PrivateKey.from_private_bytes(x(SEED, b"landfall/1/recovery/x25519", b"", 32))
X25519 = private.public_key().public_bytes_raw()
RECIPIENT, SITE_ID = blake3(X25519).digest()[:8], blake3(public(SIGNING)).digest()[:8]
root = x(SEED, b"landfall/1/recovery/ed25519", b"", 32)
out("X25519", X25519, "X25519 public key of the recovery seed.")
out("RECIPIENT_ID", RECIPIENT, "Its id.")
out("ROOT_PUBLIC", public(root), "Root public key of the recovery seed.")
out("VAULT_SIGNATURE", sign(root, b"landfall/1/vault", b'{"vault":true}'), 'Signature of `{"vault":true}`.')
out("SITE_PUBLIC", public(SIGNING), "Public key of the site key.")
out("SITE_ID", SITE_ID, "Its id.")
out("RECORD_SIGNATURE", sign(SIGNING, b"landfall/1/record", b"record"), "Signature of the record `record`.")
domain = x(FINGERPRINT, b"landfall/1/domain-id", b"default", 16)
out("DOMAIN_ID", domain, "Id of the domain `default`.")
out("MACHINE_ID", x(FINGERPRINT, b"landfall/1/machine-id", b"web-01", 16), "Id of the machine `web-01`.")
chunk = blake3(DATA, key=x(FINGERPRINT, b"landfall/1/fingerprint", domain, 32)).digest()
page = blake3(DATA, key=x(FINGERPRINT, b"landfall/1/page-id", b"", 32)).digest()
out("AGENT_CA", x(FINGERPRINT, b"landfall/1/agent-ca", b"", 32), "Seed of the certificate authority of the agents.")
out("CHUNK_ID", chunk, "ChunkId of the data in that domain.")
out("PAGE_ID", page, "PageId of the data.")
out("CUT_SECRET", x(FINGERPRINT, b"landfall/1/cut", domain, 192), "Cut secret of that domain.")
out("FRAME", frame(EPOCH_KEY, b"landfall/1/frame", EPOCH, chunk), "Content frame of the data.")
out("PAGE", frame(INDEX, b"landfall/1/page", bytes(16), page), "Index frame of the data.")
for name, label in [("DIRECTORY", b"landfall/1/directory"), ("RECORD", b"landfall/1/record")]:
    out(name, SALT + seal(x(INDEX, label, SALT, 32), b"header", DATA), "The data, sealed so, with the additional data `header`.")
out("WRAPPED_EPOCH", wrap(1, domain, EPOCH, EPOCH_KEY, private), "The epoch key, wrapped.")
out("WRAPPED_SITE", wrap(2, bytes(16), SITE_ID + bytes(8), INDEX + FINGERPRINT + SIGNING, private), "The site key, wrapped.")
argon2 = hash_secret_raw(PASSPHRASE, SALT, time_cost=3, memory_cost=65536, parallelism=1, hash_len=32, type=Type.ID)
out("SEALED_SEED", seal(argon2, b"landfall/1/passphrase\0" + VAULT, SEED), "The seed, sealed by the passphrase.")
secret = SEED + blake3(b"landfall/1/shares\0" + VAULT + SEED).digest()[:8]
print("/// Shares 1, 3 and 5 of 5, of which 3 are needed.")
print("pub(crate) const SHARES: [&str; 3] = [")
for x_ in (1, 3, 5):
    print(f'    "{share(secret, 3, 5, x_)}",')
print("];")
