#!/usr/bin/env python3
"""make bench, fourth part: a disk that is served from the vault over NBD, read from end to end by nbdcopy.

  serve.py --landfall BIN --work DIR [--gib N] [--report FILE]

Figures: bytes a second of a sequential read by a new server (cold: every chunk is fetched, opened and checked) and of a second one with room for all (warm),
beside the same client reading the same bytes from a plain file through another server where there is one (nbdkit). What is read is compared with what was stored.
"""
import argparse, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

sys.dont_write_bytecode = True

from gateway import cpu_seconds, peak_mib, put


def sh(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout.strip()


def timed(*command):
    start = time.monotonic()
    sh(*command)
    return time.monotonic() - start


class Served:
    def __init__(self, work, *command):
        self.socket = work / "nbd.sock"
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen([*command], stdout=subprocess.DEVNULL)
        while not self.socket.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"{command} ended")
            time.sleep(0.02)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--landfall", required=True)
    ap.add_argument("--work", required=True)
    ap.add_argument("--gib", type=int, default=2)
    ap.add_argument("--report")
    a = ap.parse_args()
    work = Path(a.work)
    if not shutil.which("nbdcopy"):
        raise SystemExit("nbdcopy is needed: nothing was measured")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        disk, vault = work / "disk.img", f"file://{work}/vault"
        keys = ["--vault", vault, "--recovery-key", f"{work}/recovery.key", "--quiet"]
        site = ["--vault", vault, "--site-key", f"{work}/site.key", "--state-dir", f"{work}/state", "--quiet"]
        # Half of each 64 KiB does not compress: about what servers hold.
        with open(disk, "wb") as f:
            for _ in range(a.gib * 1024):
                f.write(b"".join(random.randbytes(32768) + b"landfall" * 4096 for _ in range(16)))
        sh(a.landfall, "vault", "create", *keys, "--site-key", f"{work}/site.key")
        sh(a.landfall, "replicate", "--machine", "m", "--disk", f"root={disk}", *site)
        mb = a.gib * (1 << 30) / 1e6
        serve = [a.landfall, "serve", "--machine", "m", "--nbd", f"unix:{work}/nbd.sock", *keys]
        served = Served(work, *serve)
        cold = timed("nbdcopy", served.uri("root"), "null:")
        cpu, peak = cpu_seconds(served.process.pid), peak_mib(served.process.pid)
        sh("nbdcopy", served.uri("root"), str(work / "back.img"))
        served.stop()
        if subprocess.run(["cmp", "-s", str(disk), str(work / "back.img")]).returncode:
            raise SystemExit("what was served is not what was stored")
        (work / "back.img").unlink()
        served = Served(work, *serve, "--cache-mib", str(a.gib * 1024 + 64))
        sh("nbdcopy", served.uri("root"), "null:")
        warm = timed("nbdcopy", served.uri("root"), "null:")
        served.stop()
        text = ("| a disk served from the vault (NBD) | figure |\n|---|---|\n"
                f"| sequential read of {a.gib} GiB, cold, vault in a local directory | {mb / cold:.0f} MB/s; {cpu / mb * 1000:.2f} CPU s per GB, {peak:.0f} MiB peak |\n"
                f"| the same, everything in its memory | {mb / warm:.0f} MB/s |\n")
        if shutil.which("nbdkit"):
            served = Served(work, "nbdkit", "-f", "-U", str(work / "nbd.sock"), "file", str(disk))
            timed("nbdcopy", served.uri(""), "null:")
            plain = timed("nbdcopy", served.uri(""), "null:")
            served.stop()
            text += f"| a plain file in the page cache, served by nbdkit | {mb / plain:.0f} MB/s |\n"
    finally:
        shutil.rmtree(work)
    print(text)
    if a.report:
        put(Path(a.report), "<!-- serve -->", text)


if __name__ == "__main__":
    main()
