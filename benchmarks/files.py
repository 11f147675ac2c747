"""900 files, 136 MB, to fifty hosts behind lines of 100 Mbit/s, and once more unchanged; in the lab (root).

With random bytes, which nothing makes smaller, and with programs, as they are in three releases of Python packages.

ted's run is ``playbooks/send.yml`` and lasts until the last host has extracted; its agents run already, as install.yml
leaves them. ``ansible.builtin.copy`` takes most of a day for all of it, so it copies a few files of the average
size, and its time and bytes are those times as many files: what it does for one file does not depend on the others.

What programs in C take for some of what ted does shows how much of it is due to the work itself: nginx, curl, openssl
and tar pass on an archive of the tree by a relay a site, encrypted and compared with a digest, keep it, and unpack it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fleet as one_file
from benchmarks.fleet import BIN, Field, cpu_of, serve
from benchmarks.measure import Contender, Options, Sample, Samples, interleaved, run_command
from benchmarks.report import Report, mb, spread
from benchmarks.rig import Lab, LabFleet, directory, full_memory, need, write_random
from benchmarks.wheels import unpack
from ted.records.journal import Journal
from ted.records.states import State

MBIT_S = 100
FILES, BYTES = 900, 136_000_000
COPIED = 3
ANSIBLE = "12.3.0"
TARGET = "/srv/tree"
TED, SYNCHRONIZE, COPY = "ted, playbooks/send.yml", "ansible.posix.synchronize", "ansible.builtin.copy"
ARCHIVE = "HTTPS by a relay a site, openssl dgst, tar -x --zstd"
COMMAND = "ted send, by command"
COMPARED_WITH = {"first": "first", "again": "again", "command": "again"}
"""The run of ted's play that each is compared with."""
RELEASES = ("numpy==1.26.4", "scipy==1.13.1", "pandas==2.2.2")
Content = Callable[[Path, int, int], None]
"""Makes a tree in a new directory: so many files, so many bytes in all."""


@dataclass
class Tree:
    """A lab with the tree at HQ, and what the peers need."""

    field: Field
    source: Path
    few: Path
    files: int
    collections: Path


def random_bytes(source: Path, files: int, size: int) -> None:
    """Make ``files`` of ``size`` bytes in all, which nothing makes smaller."""
    chance = random.Random(900)
    shares = [chance.lognormvariate(0, 1.5) for _ in range(files)]
    for number, share in enumerate(shares):
        path = source / f"d{number % 30:02}" / f"f{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(int(share / sum(shares) * size)))


def programs(source: Path, files: int, size: int) -> None:
    """Put ``files`` of ``RELEASES``: the largest, but for the few that would make them more than ``size`` bytes."""
    for release in RELEASES:
        unpack(release, source)
    found = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    sizes = [path.stat().st_size for path in found]
    first = next(at for at in range(len(found)) if sum(sizes[at:at + files]) <= size)
    for path in (*found[:first], *found[first + files:]):
        path.unlink()


def build(root: Path, content: Content, sites: int, hosts: int, files: int, size: int, *, with_agents: bool) -> Tree:
    """Bring up the lab, make the tree; with ted's agents, build the distribution as well."""
    names = {f"b{site}": [f"b{site}-{number:02}" for number in range(1, hosts + 1)] for site in range(1, sites + 1)}
    source, few = root / "source", root / "few"
    content(source, files, size)
    few.mkdir()
    for number in range(COPIED):
        write_random(few / f"f{number}", size // files)
    fleet = LabFleet(root)
    fleet.add("dist", distributor=True, routing_hierarchy=[found[0] for found in names.values()], distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "%DEST%", "from": [f"{source}/"]}]}},
    })  # fmt: skip
    for found in names.values():
        for name in found:
            parent, dest = None if name == found[0] else found[0], str(root / name / "dest")
            fleet.add(name, parent=parent, channels=("pos",), extract_schedule={"immediately": True},
                      variables={"DEST": dest})  # fmt: skip
    archive = root / "archive" / "big"
    spec: dict[str, Any] = {"share": [str(source), str(few), str(archive.parent)], "trust": "mesh",
                            "sites": {"hq": {"hosts": ["dist"]}}}  # fmt: skip
    archive.parent.mkdir()
    spec["sites"] |= {site: {"hosts": found, "wan": f"{MBIT_S}mbit"} for site, found in names.items()}
    lab = Lab("files", root / "lab", spec)
    fleet.place(lab)
    if with_agents:
        fleet.install()
        fleet.start()
        fleet.ted("dist", "build")
    else:
        run_command(["tar", "--zstd", "-cf", str(archive), "-C", str(source), "."])
        serve(Field(lab, fleet, archive, names))
    return Tree(Field(lab, fleet, archive, names), source, few, files, posix_collection(root))


def posix_collection(root: Path) -> Path:
    """Return a directory of collections with ansible.posix, out of the package that carries it."""
    run_command([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(root), f"ansible=={ANSIBLE}"])
    inside = "ansible_collections/ansible/posix/"
    with zipfile.ZipFile(next(root.glob("ansible-*.whl"))) as wheel:
        wheel.extractall(root / "collections", [name for name in wheel.namelist() if name.startswith(inside)])
    return root / "collections"


def by_ted(tree: Tree) -> None:
    fleet = tree.field.fleet
    tree.field.run(str(BIN / "ansible-playbook"), "-i", str(tree.field.inventory()), "playbooks/send.yml")
    with closing(Journal.at(fleet.working("dist"), "dist")) as journal:  # a command for each look would take its share
        fleet.until(lambda: {row.state for row in journal.states(distribution="app")} == {State.EXTRACTED},
                    within_s=600)  # fmt: skip


def by_command(tree: Tree) -> None:
    """Send once more without a play: what a schedule or a script does on the Distributor."""
    config = tree.field.fleet.config("dist")
    tree.field.run(str(BIN / "ted"), "--config", str(config), "send")


def by_synchronize(tree: Tree) -> None:
    tree.field.run("env", f"ANSIBLE_COLLECTIONS_PATH={tree.collections}", str(BIN / "ansible"),
                   "-i", f"{tree.field.state}/inventory.yml", "-f", "50", ",".join(tree.field.hosts),
                   "-m", "ansible.posix.synchronize", "-a", f"src={tree.source}/ dest={TARGET}")  # fmt: skip


def by_archive(tree: Tree) -> None:
    """Each relay fetches and unpacks, its leaves from it as soon as it has the archive."""
    unpack = f"mkdir -p {TARGET} && tar -xf {one_file.TARGET} -C {TARGET}"
    lines = []
    for relay, *others in tree.field.sites.values():
        onward = "".join(f'ssh {name} "sh {one_file.FETCH} {relay} && {unpack}" & ' for name in others)
        wanted = f"sh {one_file.FETCH} dist && {{ {onward}{unpack} && wait; }}"
        lines.append(f"ssh -F {tree.field.state}/ssh/config {relay} '{wanted}' &")
    tree.field.run("sh", "-ec", "\n".join([*lines, "wait"]))


def by_copy(tree: Tree) -> None:
    tree.field.run(str(BIN / "ansible"), "-i", f"{tree.field.state}/inventory.yml", "-f", "50",
                   ",".join(tree.field.hosts), "-m", "ansible.builtin.copy",
                   "-a", f"src={tree.few}/ dest={TARGET}")  # fmt: skip


def measured(tree: Tree, distribute: Callable[[Tree], None], times: float) -> dict[str, float]:
    """Run one distribution twice (an archive once, ted's by a command too); return what each cost, ``times`` over."""
    found: dict[str, float] = {}
    runs = {"first": distribute} | ({} if distribute is by_archive else {"again": distribute})
    for run, act in (runs | ({"command": by_command} if distribute is by_ted else {})).items():
        used, _ = cpu_of(tree.field), tree.field.lab.call("bytes", "--zero")
        began_s = time.monotonic()
        act(tree)
        found[f"{run}_s"] = (time.monotonic() - began_s) * times
        found[f"{run}_cpu_s"] = (cpu_of(tree.field) - used) * times
        found[f"{run}_bytes"] = max(tree.field.lab.line_bytes(site)["down"] for site in tree.field.sites) * times
    return found


def check(tree: Tree, distribute: Callable[[Tree], None]) -> None:
    """Compare every host's tree with the source.

    Raises:
        RuntimeError: One differs.
    """
    for host in tree.field.hosts:
        there = tree.field.state / "hosts" / host / "root" / TARGET.lstrip("/")
        there = tree.field.fleet.root / host / "dest" if distribute is by_ted else there
        wanted = tree.few if distribute is by_copy else tree.source
        if subprocess.run(["diff", "-r", "-q", wanted, there], capture_output=True, check=False).returncode:
            raise RuntimeError(f"{host} has not got it")


def table(options: Options) -> Report:
    """Measure; a new lab for each run, since every program finds nothing there."""
    need(rsync="rsync", nginx="nginx-light", curl="curl", openssl="openssl", zstd="zstd")
    sites, hosts, files, size = (2, 2, 90, 13_600_000) if options.quick else (5, 10, FILES, BYTES)
    ways = {TED: by_ted, ARCHIVE: by_archive, SYNCHRONIZE: by_synchronize, COPY: by_copy}

    def contender(content: Content, name: str) -> Contender:
        def run() -> Sample:
            with directory() as root:
                tree = build(root, content, sites, hosts, files, size, with_agents=name == TED)
                try:
                    with full_memory():
                        found = measured(tree, ways[name], files / COPIED if name == COPY else 1)
                    check(tree, ways[name])
                    return Sample(found["first_s"], found["first_cpu_s"], 0, found)
                finally:
                    tree.field.fleet.close()
                    tree.field.lab.call("down")

        return Contender(name, run, rounds=1 if name in {COPY, ARCHIVE} else None)

    rows: list[tuple[object, ...]] = []
    for what, content, names in (("random bytes", random_bytes, list(ways)),
                                 ("programs", programs, [TED, ARCHIVE, SYNCHRONIZE])):  # fmt: skip
        rows += _rows(what, interleaved([contender(content, name) for name in names], options.rounds))
    columns = ("of", "run", f"{files} files, {size / 1e6:.0f} MB to {sites * hosts} hosts", "s, median (worst)",
               "to ted's", "CPU s, controller and hosts", "MB into the fullest site")  # fmt: skip
    notes = [
        f"Lines of {MBIT_S} Mbit/s into {sites} sites of {hosts} hosts; ted until the last host has extracted.",
        f"Programs: as many files of {', '.join(RELEASES)}, the largest but for the few that would make them more.",
        f"{ARCHIVE}: started by ssh, without client certificates, signatures, undo or a journal; nothing waits for the "
        "slowest. It was run once.",
        f"{COPY}: {COPIED} files were copied, once; the figures are those times {files / COPIED:.0f}.",
        "Memory is full of page cache when a run begins.",
        "All hosts are on this machine's two cores, which are busy throughout: a module run costs 0.4 CPU seconds a "
        "host, whatever it does, and that is most of every second run.",
    ]
    return Report("files", "Many files to fifty hosts", columns, rows, notes)


def _rows(what: str, found: Samples) -> list[tuple[object, ...]]:
    runs = [("first", "first", name, name) for name in found]
    runs += [("unchanged", "command", TED, COMMAND)]
    runs += [("unchanged", "again", name, name) for name in found if name != ARCHIVE]
    return [
        (what, label, shown, spread(found.median(name, f"{run}_s"), found.worst(name, f"{run}_s"), 1),
         f"{found.median(name, f'{run}_s') / found.median(TED, f'{COMPARED_WITH[run]}_s'):.1f}",
         f"{found.median(name, f'{run}_cpu_s'):.1f}", mb(found.median(name, f"{run}_bytes")))
        for label, run, name, shown in runs
    ]  # fmt: skip
