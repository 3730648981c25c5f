#!/usr/bin/env python3
"""make bench: Landfall beside its peers and beside the bare loop of the machine, on one corpus, in one run.

  run.py --landfall BIN --bare-loop BIN --corpus DIR --work DIR [--rounds N] [--report FILE]

Each figure is wall seconds, CPU seconds (user + system of the whole process tree), peak memory and bytes stored or fetched. Rounds
are interleaved (ours, peer, ours, peer ...) and the best of each is kept, so that a neighbour's noise hits all alike.
Peers that are not installed are named as missing, never guessed.
"""
import argparse, json, os, resource, shutil, subprocess, sys, time
from pathlib import Path


def run(command, env=None, stdin=None):
    """Runs a command; returns wall seconds, CPU seconds, peak MiB and its stdout."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    timed = ["/usr/bin/time", "-f", "%M", "-o", "/dev/fd/3"] if shutil.which("time") or Path("/usr/bin/time").exists() else []
    read, write = os.pipe()
    if timed:
        timed[4] = f"/dev/fd/{write}"
    done = subprocess.run(timed + [str(c) for c in command], env={**os.environ, **(env or {})}, stdin=stdin,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[write])
    os.close(write)
    peak = os.read(read, 64).split()
    os.close(read)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}: {done.stderr.decode()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak_mib": int(peak[-1]) / 1024 if peak else None, "out": done.stdout.decode()}


def tree_bytes(folder):
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def same(a, b):
    return subprocess.run(["cmp", "-s", str(a), str(b)]).returncode == 0


class Landfall:
    name = "landfall"

    def __init__(self, binary, work):
        self.binary, self.dir = binary, Path(work) / "landfall"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.vault = self.dir / "vault"
        self.env = {"LANDFALL_VAULT": f"file://{self.vault}", "LANDFALL_SITE_KEY": str(self.dir / "site.key"),
                    "LANDFALL_RECOVERY_KEY": str(self.dir / "recovery.key"), "LANDFALL_STATE_DIR": str(self.dir / "state")}
        run([binary, "vault", "create"], self.env)

    def store(self, machine, image):
        before = tree_bytes(self.vault)
        figure = run([self.binary, "replicate", "--json", "--machine", machine, "--disk", f"root={image}"], self.env)
        return {**figure, "stored": tree_bytes(self.vault) - before}

    def restore(self, machine, seq, target, existing="refuse"):
        figure = run([self.binary, "rehydrate", "--json", "--machine", machine, "--point", seq, "--disk", f"root={target}",
                      "--existing", existing], self.env)
        document = json.loads(figure["out"])
        return {**figure, "fetched": document["fetched_bytes"], "written": document["disks"][0]["written_bytes"]}


class Restic:
    name = "restic"

    def __init__(self, work):
        self.dir = Path(work) / "restic"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.repo = self.dir / "repo"
        self.env = {"RESTIC_REPOSITORY": str(self.repo), "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self.dir / "cache")}
        run(["restic", "init"], self.env)

    def store(self, machine, image):
        before = tree_bytes(self.repo)
        with open(image, "rb") as stdin:
            figure = run(["restic", "backup", "-q", "--stdin", "--stdin-filename", f"{machine}.img", "--host", machine], self.env, stdin)
        return {**figure, "stored": tree_bytes(self.repo) - before}

    def restore(self, machine, target):
        folder = self.dir / "restored"
        shutil.rmtree(folder, ignore_errors=True)
        figure = run(["restic", "restore", "-q", "latest", "--host", machine, "--target", str(folder)], self.env)
        os.replace(folder / f"{machine}.img", target)
        return figure


class Rustic(Restic):
    name = "rustic"

    def __init__(self, work):
        self.dir = Path(work) / "rustic"
        shutil.rmtree(self.dir, ignore_errors=True)
        (self.dir / "config").mkdir(parents=True)
        self.repo = self.dir / "repo"
        self.env = {"RUSTIC_REPOSITORY": str(self.repo), "RUSTIC_PASSWORD": "bench", "RUSTIC_CACHE_DIR": str(self.dir / "cache"),
                    "RUSTIC_NO_PROGRESS": "true", "XDG_CONFIG_HOME": str(self.dir / "config")}
        run(["rustic", "init", "--set-compression", "1"], self.env)

    def store(self, machine, image):
        before = tree_bytes(self.repo)
        link = self.dir / f"{machine}.img"
        link.unlink(missing_ok=True)
        os.link(image, link) if os.stat(image).st_dev == os.stat(self.dir).st_dev else shutil.copy(image, link)
        figure = run(["rustic", "backup", "--host", machine, "--as-path", f"/{machine}.img", str(link)], self.env)
        return {**figure, "stored": tree_bytes(self.repo) - before}

    def restore(self, machine, target):
        Path(target).unlink(missing_ok=True)
        return run(["rustic", "restore", "--filter-host", machine, f"latest:/{machine}.img", str(target)], self.env)


def best(figures):
    return {**min(figures, key=lambda f: f["wall"]), "cpu": min(f["cpu"] for f in figures),
            "peak_mib": max((f["peak_mib"] or 0) for f in figures)}


def settle():
    """Nothing of the round before is still on its way to the disk."""
    subprocess.run(["sync"], check=True)


def round_of(tool, corpus, work):
    base, delta, clone = (Path(corpus) / f"{n}.img" for n in ("base", "delta", "clone"))
    out, target = {}, Path(work) / "restored.img"
    settle()
    out["first copy"] = tool.store("m1", base)
    settle()
    out["later state"] = tool.store("m1", delta)
    settle()
    out["second server"] = tool.store("m2", clone)
    target.unlink(missing_ok=True)
    settle()
    ours = isinstance(tool, Landfall)
    out["rehydrate"] = tool.restore("m1", 2, target) if ours else tool.restore("m1", target)
    if not same(target, delta):
        sys.exit(f"{tool.name}: what came back is not what went in")
    if ours:
        target.unlink()
        subprocess.run(["cp", "--sparse=always", str(base), str(target)], check=True)
        settle()
        out["bring an existing disk up to date"] = tool.restore("m1", 2, target, "compare")
        if not same(target, delta):
            sys.exit("compare: the disk is not the point")
        out["existing disk already right"] = tool.restore("m1", 2, target, "compare")
    target.unlink()
    shutil.rmtree(tool.dir)
    return out


def mib(n):
    return "-" if n is None else f"{n / 1048576:.0f}"


def direct_write(work, image):
    """The machine's direct write of as many bytes as the image has allocated."""
    target, count = Path(work) / "direct.bin", os.stat(image).st_blocks * 512 // 1048576
    figure = run(["dd", "if=/dev/zero", f"of={target}", "bs=4M", f"count={count // 4}", "oflag=direct", "conv=fsync"])
    target.unlink()
    return figure


def main():
    ap = argparse.ArgumentParser()
    for name in ("landfall", "bare-loop", "corpus", "work"):
        ap.add_argument(f"--{name}", required=True)
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--report")
    a = ap.parse_args()
    Path(a.work).mkdir(parents=True, exist_ok=True)
    base = Path(a.corpus) / "base.img"
    tools = {"landfall": lambda: Landfall(a.landfall, a.work)}
    missing = []
    for name, make in (("rustic", Rustic), ("restic", Restic)):
        if shutil.which(name):
            tools[name] = lambda make=make: make(a.work)
        else:
            missing.append(name)
    rounds, limits, writes = {name: [] for name in tools}, [], []
    for _ in range(a.rounds):
        subprocess.run(["cat", str(base)], stdout=subprocess.DEVNULL)
        limits.append(json.loads(run([a.bare_loop, base])["out"]))
        writes.append(direct_write(a.work, Path(a.corpus) / "delta.img"))
        for name, make in tools.items():
            rounds[name].append(round_of(make(), a.corpus, a.work))
    limit = {k: min(l[k] for l in limits) for k in ("capture_seconds", "materialise_seconds")}
    write_wall = min(w["wall"] for w in writes)
    works = list(rounds["landfall"][0])
    result = {name: {w: best([r[w] for r in rs]) for w in works if w in rs[0]} for name, rs in rounds.items()}
    lines = [f"Bare loop of capture (BLAKE3 + zstd 1 + AES-256-GCM, {limits[0]['bytes'] / 1048576:.0f} MiB that are not zero): "
             f"{limit['capture_seconds']:.1f} s. Of materialise (open + decompress + verify): {limit['materialise_seconds']:.1f} s. "
             f"Bare direct write of the same bytes: {write_wall:.1f} s.", "",
             "| work | tool | wall s | CPU s | peak MiB | stored MiB | fetched MiB | wall / landfall's | CPU / landfall's |",
             "|---|---|---|---|---|---|---|---|---|"]
    for w in works:
        ours = result["landfall"][w]
        for name in tools:
            if w in result[name]:
                f = result[name][w]
                lines.append(f"| {w} | {name} | {f['wall']:.1f} | {f['cpu']:.1f} | {f['peak_mib']:.0f} | {mib(f.get('stored'))} | {mib(f.get('fetched'))} "
                             f"| {f['wall'] / ours['wall']:.2f} | {f['cpu'] / ours['cpu']:.2f} |")
    ours = result["landfall"]
    lines += ["", "| ratio to the machine | figure |", "|---|---|",
              f"| first copy / bare capture loop | {ours['first copy']['wall'] / limit['capture_seconds']:.2f} |",
              f"| rehydrate / max(bare materialise loop, bare direct write) | {ours['rehydrate']['wall'] / max(limit['materialise_seconds'], write_wall):.2f} |"]
    if missing:
        lines.append(f"\nNot installed, so not measured: {', '.join(missing)}.")
    text = "\n".join(lines) + "\n"
    print(text)
    if a.report:
        report = Path(a.report)
        head, mark, rest = report.read_text().partition("<!-- figures -->")
        _, gateway, service = rest.partition("<!-- gateway -->")
        report.write_text(f"{head}{mark or '<!-- figures -->'}\n\n{text}\n{gateway}{service}")


main()
