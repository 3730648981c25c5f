#!/usr/bin/env python3
"""make bench, third part: a block device that is written to, with and without an agent that watches it. Root, fio.

  hosts.py --landfall BIN --work DIR [--seconds N] [--report FILE]

Figures: what a writer gets (writes a second, 99th percentile of their latency) without and with capture, in turns; and, at 50 MB/s of random writes,
how long the file system stands still for a point, how much is sent for each byte written, and what the agent takes. Agent, gateway and store are
on this machine too. The newest point is brought back and compared at the end.
"""
import argparse, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

sys.dont_write_bytecode = True

from gateway import Site, cpu_seconds, peak_mib, put


def sh(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Host:
    """A file system on a loop device, and its agent."""

    def __init__(self, site, mib=2048):
        self.site, self.file, self.mount = site, site.dir / "disk.img", site.dir / "mnt"
        with open(self.file, "wb") as f:
            f.truncate(mib << 20)
        self.device = sh("losetup", "--direct-io=on", "--find", "--show", str(self.file))
        sh("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device)
        self.mount.mkdir()
        sh("mount", self.device, str(self.mount))
        self.config, self.log, self.agent = site.host("web", self.device, 1), site.dir / "agent.log", None

    def capture(self):
        with open(self.log, "a") as log:
            env = {**os.environ, "LANDFALL_LOG": "info"}
            command = [self.site.binary, "agent", "run", "--config", self.config]
            self.agent = subprocess.Popen(command, stderr=log, env=env)
        self.wait_for(2)

    def spooled(self):
        """held_ms of each cycle, in order."""
        return [int(n) for n in re.findall(r"held_ms=(\d+)", re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text()))]

    def wait_for(self, more):
        wanted, end = len(self.spooled()) + more, time.monotonic() + 120
        while len(self.spooled()) < wanted:
            if time.monotonic() > end or self.agent.poll() is not None:
                raise SystemExit(f"the agent ships nothing: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self):
        if self.agent:
            self.agent.send_signal(signal.SIGTERM)
            self.agent.wait()
            self.agent = None

    def write(self, seconds, *more):
        job = ["fio", "--name=w", f"--directory={self.mount}", "--size=512M", "--rw=randwrite", "--bs=16k", "--ioengine=libaio", "--direct=1",
               "--time_based", f"--runtime={seconds}", "--output-format=json", *more]
        return json.loads(sh(*job))["jobs"][0]["write"]

    def close(self):
        self.stop()
        subprocess.run(["umount", str(self.mount)])
        subprocess.run(["losetup", "--detach", self.device])


def percentile(values, q):
    values = sorted(values)
    if not values:
        return float("nan")
    return values[min(len(values) - 1, int(q * len(values)))]


def figures(host, seconds):
    host.write(seconds, "--iodepth=8")
    rounds = []
    for _ in range(3):
        without = host.write(seconds, "--iodepth=8")
        host.capture()
        rounds.append((without, host.write(seconds, "--iodepth=8")))
        host.stop()
    latency = lambda write: write["clat_ns"]["percentile"]["99.000000"] / 1e6
    middle = sorted(rounds, key=lambda r: r[1]["iops"] / r[0]["iops"])[1]
    text = (f"| 16 KiB random writes as fast as they go, without / with capture each second | {middle[0]['iops']:.0f} / {middle[1]['iops']:.0f} a second: "
            f"{100 * middle[1]['iops'] / middle[0]['iops']:.0f} %; p99 {latency(middle[0]):.1f} / {latency(middle[1]):.1f} ms |\n")
    host.capture()
    before, cpu, start = len(host.spooled()), cpu_seconds(host.agent.pid), time.monotonic()
    received = received_bytes(host)
    steady = host.write(3 * seconds, "--iodepth=4", "--rate=50m")
    wall, cpu = time.monotonic() - start, cpu_seconds(host.agent.pid) - cpu
    held, memory = host.spooled()[before:], peak_mib(host.agent.pid)
    host.wait_for(2)
    sent = received_bytes(host) - received
    text += (f"| {steady['bw_bytes'] / 1e6:.0f} MB/s of 16 KiB random writes: the file system stands still for a point, p50 / p99 of {len(held)} | "
             + (f"{percentile(held, 0.5)} / {percentile(held, 0.99)} ms |\n" if held else "no point in this time: each is late by up to late_max |\n") +
             f"| bytes sent for each byte written | {sent / steady['io_bytes']:.2f} |\n"
             f"| the agent meanwhile | {100 * cpu / wall:.0f} % of a core, {memory:.0f} MiB |\n")
    cpu, start = cpu_seconds(host.agent.pid), time.monotonic()
    time.sleep(seconds)
    text += f"| the agent at rest, a cycle each second | {100 * (cpu_seconds(host.agent.pid) - cpu) / (time.monotonic() - start):.1f} % of a core |\n"
    return text


def received_bytes(host):
    status = host.site.run("status", *host.site.config)
    return status["machines"][0]["received_bytes"]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--landfall", required=True)
    ap.add_argument("--work", required=True)
    ap.add_argument("--seconds", type=int, default=10)
    ap.add_argument("--report")
    a = ap.parse_args()
    if os.geteuid() or not shutil.which("fio"):
        raise SystemExit("root and fio are needed: nothing was measured")
    site = Site(a.landfall, a.work)
    try:
        host = Host(site)
        try:
            text = "| a host whose block device is watched | figure |\n|---|---|\n" + figures(host, a.seconds)
            host.stop()
            sh("umount", str(host.mount))
            site.run("agent", "run", "--once", "--config", host.config)
            time.sleep(3)
            site.check("web", host.file)
        finally:
            host.close()
    finally:
        site.stop([site.gateway])
        shutil.rmtree(site.dir)
    print(text)
    if a.report:
        put(Path(a.report), "<!-- hosts -->", text)


if __name__ == "__main__":
    main()
