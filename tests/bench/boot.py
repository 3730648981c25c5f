#!/usr/bin/env python3
"""make bench, fifth part: a machine that boots straight from a vault far away.

  boot.py --landfall BIN --work DIR --peers DIR [--mib N] [--read-mib N] [--delay-ms N] [--report FILE]

The tests' guest (emulated, no KVM) boots from a disk of N MiB that do not compress, reads some of them, and says so. Measured from the start of QEMU until it has said so: from a local
raw file; by `failover test` from a vault in a small S3 store whose every answer comes so many milliseconds late; and the same again with the boot profile that the first test kept.
Bytes are those that the store sent.
"""
import argparse, json, os, random, re, shutil, subprocess, sys, threading, time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

sys.dont_write_bytecode = True

from gateway import put

MARK = "BENCH-ALL-READ"


class Store(ThreadingHTTPServer):
    """So much of S3 as Landfall uses, in a folder. Every answer comes late, and what is sent is counted."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.delay, self.bytes, self.answers, self.lock = folder, 0.0, 0, 0, threading.Lock()
        self.address = "http://127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 1 << 16

    def log_message(self, *_):
        pass

    def say(self, status, headers=(), body=b"", file=None, start=0, length=0):
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.answers += 1
            self.server.bytes += length or len(body)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        if self.command == "HEAD":
            body, file = b"", None
        self.wfile.write(body)
        self.wfile.flush()
        if file:
            while length and (sent := os.sendfile(self.connection.fileno(), file.fileno(), start, length)):
                start, length = start + sent, length - sent

    def path_of(self):
        key = unquote(urlsplit(self.path).path).split("/", 2)[2]
        return self.server.folder / key

    def do_PUT(self):
        body, path = self.rfile.read(int(self.headers.get("Content-Length") or 0)), self.path_of()
        with self.server.lock:
            there = self.headers.get("If-None-Match") == "*" and path.exists()
            if not there:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
        self.say(412 if there else 200, [("ETag", '"1"')])

    def do_POST(self):
        # The only one is the deletion of a list of objects.
        keys = re.findall(r"<Key>([^<]*)</Key>", self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        for key in keys:
            (self.server.folder / key).unlink(missing_ok=True)
        done = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self.say(200, [("Content-Type", "application/xml")], f'<?xml version="1.0"?><DeleteResult>{done}</DeleteResult>'.encode())

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if "list-type" in asked:
            return self.list(asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0], asked.get("start-after", [""])[0])
        path = self.path_of()
        if not path.is_file():
            return self.say(404)
        size = path.stat().st_size
        start, end, status = 0, size, 200
        headers = [("ETag", '"1"'), ("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")]
        if (wanted := self.headers.get("Range")) and size:
            first, last = wanted.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, size - int(last))
            end, status = min(size, int(last) + 1 if first and last else size), 206
            if start >= size:
                return self.say(416)
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        with open(path, "rb") as f:
            self.say(status, headers, file=f, start=start, length=end - start)

    def list(self, prefix, delimiter, after):
        keys, folders = [], set()
        for path in sorted(p for p in self.server.folder.rglob("*") if p.is_file()):
            key = path.relative_to(self.server.folder).as_posix()
            if not key.startswith(prefix) or key <= after:
                continue
            if delimiter and (cut := key.find(delimiter, len(prefix))) >= 0:
                folders.add(key[:cut + 1])
            else:
                keys.append(f'<Contents><Key>{key}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>"1"</ETag><Size>{path.stat().st_size}</Size></Contents>')
        folders = "".join(f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in sorted(folders))
        text = f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{"".join(keys)}{folders}</ListBucketResult>'
        self.say(200, [("Content-Type", "application/xml")], text.encode())


def wait(so, what):
    end = time.monotonic() + 300
    while not (found := so()):
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.05)
    return found


def sh(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout.strip()


def make_disk(disk, mib, read_mib, work):
    """The guest's system, and files that do not compress: tests/src/guest.rs does the same."""
    tree = work / "tree"
    for folder in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "mnt", "data"):
        (tree / folder).mkdir(parents=True)
    tree.chmod(0o755)
    busybox = shutil.which("busybox")
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in sh(busybox, "--list").splitlines():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    shutil.copy(Path(__file__).parent.parent / "tools/guest-init.sh", tree / "sbin/init")
    (tree / "sbin/init").chmod(0o755)
    files = (mib - 64) // 4
    # Not beside each other, as the files of a boot are not.
    read = random.Random(1).sample(range(files), read_mib // 4)
    for n in range(files):
        (tree / f"data/{n:04}").write_bytes(random.randbytes(4 << 20))
    (tree / "etc/start").write_text("cat %s >/dev/null; echo %s\n" % (" ".join(f"/data/{n:04}" for n in read), MARK))
    with open(disk, "wb") as f:
        f.truncate(mib << 20)
    sh("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(disk))
    shutil.rmtree(tree)


def stamp(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--landfall", required=True)
    ap.add_argument("--work", required=True)
    ap.add_argument("--peers", required=True)
    ap.add_argument("--mib", type=int, default=640)
    ap.add_argument("--read-mib", type=int, default=40)
    ap.add_argument("--delay-ms", type=int, default=30)
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--report")
    a = ap.parse_args()
    work, peers = Path(a.work).resolve(), Path(a.peers).resolve()
    guest, landfall = peers / "guest", str(Path(a.landfall).resolve())
    if not (guest / "made-1").is_file() or not shutil.which("qemu-system-x86_64"):
        raise SystemExit("QEMU and the tests' guest are needed (tests/tools/setup.sh): nothing was measured")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "store").mkdir()
    store = Store(work / "store")
    jobs = []
    env = {**os.environ, "AWS_ENDPOINT": store.address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
           "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "LANDFALL_STATE_DIR": str(work / "state")}
    keys = ["--vault", "s3://landfall/vault", "--recovery-key", f"{work}/recovery.key", "--quiet"]
    try:
        disk = work / "disk.img"
        make_disk(disk, a.mib, a.read_mib, work)

        site = ["--vault", "s3://landfall/vault", "--site-key", f"{work}/site.key", "--quiet"]
        sh(landfall, "vault", "create", *keys, "--site-key", f"{work}/site.key", env=env)
        sh(landfall, "replicate", "--machine", "m", "--disk", f"root={disk}", *site, env=env)
        machine = ["-machine", "pc,accel=tcg", "-cpu", "qemu64", "-smp", "1", "-m", "512M"]
        append = "console=ttyS0 quiet panic=-1"

        def local():
            serial = work / "serial.log"
            serial.unlink(missing_ok=True)
            # What it writes goes: the next round boots what this one did.
            begin = time.time()
            process = subprocess.Popen(["qemu-system-x86_64", *machine, "-nodefaults", "-no-user-config", "-display", "none", "-kernel", str(guest / "vmlinuz"),
                                        "-initrd", str(guest / "initrd"), "-append", append, "-serial", f"file:{serial}",
                                        "-drive", f"file={disk},format=raw,if=virtio,snapshot=on"], stderr=subprocess.DEVNULL)
            try:
                wait(lambda: serial.exists() and MARK in serial.read_text(errors="replace"), "a local boot")
                return time.time() - begin
            finally:
                process.kill()
                process.wait()

        target = work / "target.toml"
        target.write_text(f'[kvm]\naccel = "tcg"\ncpu = "qemu64"\nmachine = "pc"\ncpus = 1\nmemory = "512MiB"\nnetwork = "none"\nkernel = "{guest}/vmlinuz"\n'
                          f'initrd = "{guest}/initrd"\nappend = "{append}"\nprobe = "console:{MARK}"\n')
        store.delay = a.delay_ms / 1000

        def from_vault():
            store.bytes = store.answers = 0
            begin = time.time()
            job = json.loads(sh(landfall, "failover", "test", "--machine", "m", "--target", "kvm", "--target-file", str(target), "--folder", f"{work}/f",
                                *keys, "--json", env=env))
            whole, moved, answers = time.time() - begin, store.bytes, store.answers
            jobs.append(job["job"])
            steps = {s["name"]: s for s in job["steps"]}
            boot = stamp(steps["up"]["started"]) + steps["up"]["elapsed_ms"] / 1000 - stamp(steps["machine"]["started"])

            def kept():
                shown = json.loads(sh(landfall, "jobs", "show", job["job"], *keys, "--json", env=env))
                return [s["detail"] for s in shown["steps"] if s["name"] == "profile" and s["done"]]
            profile = wait(kept, "the profile")
            sh(landfall, "failover", "cleanup", job["job"], *keys, env=env)
            jobs.pop()
            return boot, whole, moved / (1 << 20), answers, steps["up"]["detail"], profile[0]

        raw = min(local() for _ in range(a.rounds + 1))
        without = from_vault()
        with_profile = min(from_vault() for _ in range(a.rounds))
        head = f"| boot of a machine of {a.mib} MiB that reads {a.read_mib} MiB of them, {a.delay_ms} ms a request, emulated | from QEMU's start until it had read them | fetched | reads that waited |\n|---|---|---|---|\n"
        line = lambda what, r: f"| {what} | {r[0]:.1f} s: {r[0] / raw:.2f} times | {r[2]:.0f} MiB: {100 * r[2] / a.mib:.1f} % | {r[4].split(',')[0]} |\n"
        text = head + f"| from a local raw file | {raw:.1f} s | | |\n" + line("from the vault", without) + line("from the vault, with a boot profile", with_profile)
        print(text)
        print("whole command:", f"{without[1]:.1f} s, {with_profile[1]:.1f} s;", "requests:", without[3], with_profile[3], "profiles:", without[5], "/", with_profile[5])
        if a.report:
            put(Path(a.report), "<!-- boot -->", text)
    finally:
        for job in jobs:
            subprocess.run([landfall, "failover", "cleanup", job, *keys], env=env)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
