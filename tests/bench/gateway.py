#!/usr/bin/env python3
"""make bench, second part: the gateway as a service: agents, gateway and vault (a local directory) on this machine.

  gateway.py --landfall BIN --work DIR [--gib N] [--machines N] [--report FILE]

Figures: bytes per second of a first copy of data that does not compress, through link, capture, spool and commit; the time from a cut to its
committed point with 1 MiB changed a second (percentiles over a minute); and many machines with small cycles: CPU of the gateway, its peak memory.
Every machine's newest point is brought back and compared at the end.
"""
import argparse, json, os, random, shutil, signal, subprocess, time
from datetime import datetime
from pathlib import Path


class Site:
    def __init__(self, binary, work):
        self.binary, self.dir = str(Path(binary).resolve()), Path(work).resolve()
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.vault, self.keys = f"file://{self.dir}/vault", ["--site-key", f"{self.dir}/site.key"]
        self.run("vault", "create", "--vault", self.vault, *self.keys, "--recovery-key", f"{self.dir}/recovery.key")
        (self.dir / "gateway.toml").write_text(
            f'[gateway]\nvault = "{self.vault}"\nsite_key = "{self.dir}/site.key"\nlisten = "127.0.0.1:0"\nstate_dir = "{self.dir}/state"\n')
        self.config = ["--config", f"{self.dir}/gateway.toml"]
        self.gateway = subprocess.Popen([self.binary, "gateway", "run", *self.config, "--json"], stdout=subprocess.PIPE, text=True)
        said = ""
        while not said.endswith("}\n"):
            said += self.gateway.stdout.readline()
        self.address = json.loads(said)["listening"]
        self.agents = []

    def run(self, *arguments):
        env = {**os.environ, "LANDFALL_STATE_DIR": f"{self.dir}/reader-state"}
        done = subprocess.run([self.binary, *arguments, "--json"], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr}")
        return json.loads(done.stdout) if done.stdout else {}

    def host(self, machine, disk, interval):
        config = self.dir / f"{machine}.toml"
        config.write_text(f'[agent]\nmachine = "{machine}"\ngateways = ["{self.address}"]\nstate_dir = "{self.dir}/agent-{machine}"\n'
                          f'interval = "{interval}s"\n\n[[disk]]\nname = "root"\npath = "{disk}"\n')
        token = self.run("gateway", "token", "--machine", machine, *self.config)["token"]
        self.run("agent", "enroll", "--gateway", self.address, "--token", token, "--config", str(config))
        return str(config)

    def start(self, config):
        self.agents.append(subprocess.Popen([self.binary, "agent", "run", "--config", config, "--quiet"]))

    def points(self, machine):
        return self.run("points", "--machine", machine, "--vault", self.vault, *self.keys)["points"]

    def committed(self, machine):
        folders = list(Path(f"{self.dir}/vault/machines").glob("*/timelines/*/points"))
        return folders

    def check(self, machine, disk):
        back = self.dir / "back.img"
        back.unlink(missing_ok=True)
        self.run("rehydrate", "--machine", machine, "--vault", self.vault, "--recovery-key", f"{self.dir}/recovery.key", "--disk", f"root={back}")
        if subprocess.run(["cmp", "-s", str(back), str(disk)]).returncode:
            raise SystemExit(f"{machine}: what came back is not what went in")
        back.unlink()

    def stop(self, processes):
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        processes.clear()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid):
    line = next(l for l in Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def write(disk, at, data):
    with open(disk, "r+b") as f:
        f.seek(at)
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def moment(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def first_copy(site, gib):
    disk = site.dir / "big.img"
    with open(disk, "wb") as f:
        for _ in range(gib * 16):
            f.write(random.randbytes(64 << 20))
        os.fsync(f.fileno())
    config = site.host("big", disk, 1)
    start, cpu = time.monotonic(), cpu_seconds(site.gateway.pid)
    agent = subprocess.run(["/usr/bin/time", "-f", "%U %S %M", site.binary, "agent", "run", "--once", "--config", config], capture_output=True, text=True)
    if agent.returncode:
        raise SystemExit(agent.stderr)
    spooled = time.monotonic() - start
    while not site.run("machines", "--vault", site.vault, *site.keys)["machines"]:
        time.sleep(0.05)
    wall = time.monotonic() - start
    user, system, peak = agent.stderr.split()[-3:]
    mb = gib * (1 << 30) / 1e6
    site.check("big", disk)
    disk.unlink()
    return (f"| first copy of {gib} GiB that do not compress, one machine | {mb / wall:.0f} MB/s to committed ({mb / spooled:.0f} MB/s to spooled) |\n"
            f"| its CPU per GB: gateway / agent | {(cpu_seconds(site.gateway.pid) - cpu) / mb * 1000:.2f} s / {(float(user) + float(system)) / mb * 1000:.2f} s |\n"
            f"| its peak memory: gateway / agent | {peak_mib(site.gateway.pid):.0f} MiB / {int(peak) / 1024:.0f} MiB |\n")


def latency(site, seconds=60):
    disk = site.dir / "small.img"
    disk.write_bytes(random.randbytes(64 << 20))
    config = site.host("small", disk, 1)
    site.start(config)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write(disk, random.randrange(63) << 20, random.randbytes(1 << 20))
        time.sleep(1)
    time.sleep(3)
    site.stop(site.agents)
    points = {p["seq"]: p for p in site.points("small")}
    ages = []
    for folder in site.committed("small"):
        for file in folder.iterdir():
            seq = int(file.name, 16)
            if len(list(folder.iterdir())) == len(points) and seq > 1:
                ages.append(file.stat().st_mtime - moment(points[seq]["time"]))
    ages.sort()
    at = lambda q: ages[min(len(ages) - 1, int(q * len(ages)))]
    site.check("small", disk)
    return (f"| 1 MiB changed a second, cycles of 1 s: cut to committed, p50 / p99 of {len(ages)} | {at(0.5) * 1000:.0f} ms / {at(0.99) * 1000:.0f} ms "
            f"(of it, reading and comparing the disk of 64 MiB) |\n")


def many(site, machines, seconds=60, interval=30):
    disks = []
    for n in range(machines):
        disk = site.dir / f"m{n}.img"
        disk.write_bytes(random.randbytes(4 << 20))
        disks.append((f"m{n}", disk, site.host(f"m{n}", disk, interval)))
    for _, _, config in disks:
        site.start(config)
        time.sleep(0.1)
    while len(site.run("machines", "--vault", site.vault, *site.keys)["machines"]) < machines:
        time.sleep(1)
    before, start = cpu_seconds(site.gateway.pid), time.monotonic()
    while time.monotonic() - start < seconds:
        for _, disk, _ in disks:
            write(disk, random.randrange(15) << 18, random.randbytes(256 << 10))
        time.sleep(interval / 2)
    cpu, wall = cpu_seconds(site.gateway.pid) - before, time.monotonic() - start
    time.sleep(interval + 5)
    site.stop(site.agents)
    for name, disk, _ in disks[:3]:
        site.check(name, disk)
    return (f"| {machines} machines, 256 KiB changed, cycles of {interval} s | {100 * cpu / wall:.1f} % of a core, "
            f"{peak_mib(site.gateway.pid):.0f} MiB peak of the gateway |\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--landfall", required=True)
    ap.add_argument("--work", required=True)
    ap.add_argument("--gib", type=int, default=2)
    ap.add_argument("--machines", type=int, default=50)
    ap.add_argument("--report")
    a = ap.parse_args()
    text = "| the gateway as a service | figure |\n|---|---|\n"
    for figure in (lambda s: first_copy(s, a.gib), latency, lambda s: many(s, a.machines)):
        site = Site(a.landfall, a.work)
        try:
            text += figure(site)
        finally:
            site.stop(site.agents)
            site.stop([site.gateway])
            shutil.rmtree(site.dir)
    print(text)
    if a.report:
        put(Path(a.report), "<!-- gateway -->", text)


def put(report, mark, text):
    """Puts text behind a mark of the report, in place of what stood there up to the next mark or heading."""
    head, _, rest = report.read_text().partition(mark)
    ends = [at for at in (rest.find("\n<!-- "), rest.find("\n## ")) if at >= 0]
    report.write_text(f"{head.rstrip()}\n\n{mark}\n\n{text}{rest[min(ends):] if ends else ''}")


if __name__ == "__main__":
    main()
