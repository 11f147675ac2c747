"""64 MiB to sixty hosts on six sites, by playbook, beside what is used today; in the lab (root).

Every host is reached through ssh by the peers, and nginx and rsync's daemon run at the origin and on the relays for who
fetches from them; for ted its agents run already, as install.yml leaves them, and its send is ``playbooks/send.yml``.
The bound is one copy over each line. Every copy is compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Contender, Options, Sample, Samples, cpu_s, interleaved, run_command
from benchmarks.report import Report, mb, spread
from benchmarks.rig import Lab, LabFleet, directory, full_memory, goodput_s, need, write_random

HERE = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TARGET = "/srv/big"
_TLS, FETCH = "/opt/tls", "/opt/fetch"
_NGINX = (
    "user root; events {{ }} http {{ access_log off; sendfile on; server {{ listen 80; listen 443 ssl; root {served}; "
    f"ssl_certificate {_TLS}.pem; ssl_certificate_key {_TLS}.key; }}}} }}}}\n"
)
_BY_HTTP = "curl -sSf http://{host}/big -o {target}"
_FETCHED_SAFELY = f"""set -e
curl -sSf --cacert {_TLS}.pem https://$1/big -o {TARGET}
openssl dgst -sha256 -r {TARGET} | grep -q ^{{digest}}
sync {TARGET}
"""
_RSYNCD = "use chroot = no\nuid = root\nreverse lookup = no\n[files]\npath = {served}\n"


@dataclass
class Field:
    """A lab with the payload at HQ and a fleet of ted's on the same hosts."""

    lab: Lab
    fleet: LabFleet
    payload: Path
    sites: dict[str, list[str]]  # site: its hosts, the relay first

    @property
    def state(self) -> Path:
        return self.lab.home / self.lab.name

    @property
    def hosts(self) -> list[str]:
        return [host for hosts in self.sites.values() for host in hosts]

    def root_of(self, host: str) -> Path:
        """Return where a host's own file system lies on this machine."""
        return self.state / "hosts" / host / "root"

    def inventory(self) -> Path:
        """Return ted's own inventory of the fleet, with the Distributor reached from here without ssh."""
        data = self.fleet.inventory()
        data["_meta"]["hostvars"]["dist"] |= {"ansible_connection": "local", "ted_executable": str(BIN / "ted"),
                                              "ansible_python_interpreter": sys.executable}  # fmt: skip
        script = self.fleet.root / "inventory"
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(data)}\nEND\n")
        script.chmod(0o755)
        return script

    def run(self, *command: str, how: str = "run") -> None:
        """Run a program in the controller's network, or (``exec dist``) inside it, with its own keys.

        Raises:
            RuntimeError: It failed.
        """
        done = subprocess.run(self.lab.command(*how.split(), *command), env=self.lab.environment, cwd=HERE,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}")


def build(root: Path, sites: int, hosts: int, mbit_s: int, size: int, *, with_agents: bool) -> Field:
    """Bring up the lab with the payload: for ted with its agents and a distribution, for its peers with servers."""
    names = {f"b{site}": [f"b{site}-{number:02}" for number in range(1, hosts + 1)] for site in range(1, sites + 1)}
    spec: dict[str, Any] = {"trust": "mesh", "share": [str(root / "source")], "sites": {"hq": {"hosts": ["dist"]}}}
    spec["sites"] |= {site: {"hosts": found, "wan": f"{mbit_s}mbit"} for site, found in names.items()}
    fleet = LabFleet(root)
    fleet.add("dist", distributor=True, routing_hierarchy=[found[0] for found in names.values()], distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{root}/source/"]}]}},
    })  # fmt: skip
    for found in names.values():
        fleet.add(found[0], channels=("pos",))
        for name in found[1:]:
            fleet.add(name, parent=found[0], channels=("pos",))
    payload = root / "source" / "big"
    write_random(payload, size)
    lab = Lab("bench", root / "lab", spec)
    fleet.place(lab)
    field = Field(lab, fleet, payload, names)
    if with_agents:
        fleet.install()
        fleet.start()
        fleet.ted("dist", "build")
    else:
        serve(field)
    return field


def serve(field: Field) -> None:
    """Start nginx and rsync's daemon at the origin and on the relays; they serve where the payload or TARGET is.

    Every host has the certificate they show, and a script that fetches by it and compares.
    """
    names = ",".join(f"DNS:{host}" for host in ["dist", *field.hosts])
    made = field.fleet.root / "tls"
    run_command(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                 "/CN=bench", "-addext", f"subjectAltName={names}", "-keyout", f"{made}.key", "-out", f"{made}.pem"])
    script = _FETCHED_SAFELY.format(digest=_digest(field.payload))
    for host in ["dist", *field.hosts]:
        for kind in ("key", "pem"):
            shutil.copy(f"{made}.{kind}", field.root_of(host) / f"{_TLS}.{kind}".lstrip("/"))
        (field.root_of(host) / FETCH.lstrip("/")).write_text(script)
    for host in ["dist", *(found[0] for found in field.sites.values())]:
        served = field.payload.parent if host == "dist" else Path(TARGET).parent
        for name, text in (("nginx.conf", _NGINX), ("rsyncd.conf", _RSYNCD)):
            (field.root_of(host) / "opt" / name).write_text(text.format(served=served))
        field.run("nginx -c /opt/nginx.conf 2> /dev/null", how=f"exec {host}")  # it keeps a pipe that it is given
        field.run("rsync --daemon --config=/opt/rsyncd.conf", how=f"exec {host}")


def by_ted(field: Field) -> None:
    field.run(str(BIN / "ansible-playbook"), "-i", str(field.inventory()), "playbooks/send.yml")


def by_copy(field: Field) -> None:
    field.run(str(BIN / "ansible"), "-i", f"{field.state}/inventory.yml", "-f", "60", ",".join(field.hosts), "-m",
              "ansible.builtin.copy", "-a", f"src={field.payload} dest={TARGET}")  # fmt: skip


def by_two_tier_rsync(field: Field) -> None:
    """Each site for itself, no barrier between the tiers but the relay's own: better than most people write it."""
    ssh = f"ssh -F {field.state}/ssh/config"
    lines = []
    for relay, *others in field.sites.values():
        onward = " & ".join(f"rsync {TARGET} {name}:{TARGET}" for name in others)
        lines.append(f"( rsync -e '{ssh}' {field.payload} {relay}:{TARGET} && {ssh} {relay} '{onward} & wait' ) &")
    field.run("sh", "-ec", "\n".join([*lines, "wait"]))


def by_two_tier_http(field: Field) -> None:
    _fetched_by_relays(field, _BY_HTTP)


def by_http_tier_by_tier(field: Field) -> None:
    """As it is mostly written: the leaves begin when every relay is done. The goal was set by such a run."""
    _fetched_by_relays(field, _BY_HTTP, tier_by_tier=True)


def by_two_tier_https(field: Field) -> None:
    """As HTTP, and encrypted, compared with a digest and synced; without client certificates and signatures."""
    _fetched_by_relays(field, f"sh {FETCH} {{host}}")


def by_two_tier_rsyncd(field: Field) -> None:
    _fetched_by_relays(field, "rsync rsync://{host}/files/big {target}")


def _fetched_by_relays(field: Field, fetch: str, *, tier_by_tier: bool = False) -> None:
    """Each relay fetches from the origin, then its leaves from it: as free of barriers as the rsync that pushes.

    Or ``tier_by_tier``: no leaf begins before every relay has it.
    """
    ssh = f"ssh -F {field.state}/ssh/config"
    first_tier, second_tier = [], []
    for relay, *others in field.sites.values():
        onward = " & ".join(f"ssh {name} {fetch.format(host=relay, target=TARGET)}" for name in others)
        first = fetch.format(host="dist", target=TARGET)
        if tier_by_tier:
            first_tier.append(f"{ssh} {relay} '{first}' &")
            second_tier.append(f"{ssh} {relay} '{onward} & wait' &")
        else:
            first_tier.append(f"{ssh} {relay} '{first} && {{ {onward} & wait; }}' &")
    field.run("sh", "-ec", "\n".join([*first_tier, "wait", *second_tier, "wait"]))


def by_clush_tree(field: Field) -> None:
    topology = field.payload.with_name("topology.conf")
    relays = ",".join(found[0] for found in field.sites.values())
    below = [f"{found[0]}: {','.join(found[1:])}" for found in field.sites.values()]
    topology.write_text("\n".join(["[routes]", f"dist: {relays}", *below]) + "\n")
    words = ["clush", f"--topology={topology}", "-f", "60", "-w", ",".join(field.hosts)]
    field.run(*words, "--copy", str(field.payload), "--dest", TARGET, how="exec dist")


def check(field: Field, where: Callable[[str], Path]) -> None:
    """Compare every host's copy.

    Raises:
        RuntimeError: One is missing or another.
    """
    wanted = _digest(field.payload)
    for host in field.hosts:
        copy = where(host)
        if not copy.is_file() or _digest(copy) != wanted:
            raise RuntimeError(f"{host} has not got it")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measured(field: Field, distribute: Callable[[Field], None], mbit_s: int) -> Sample:
    """Run one distribution on a clean field and say what it took."""
    used = cpu_of(field)
    field.lab.call("bytes", "--zero")
    started_s = time.time()
    distribute(field)
    last_s = time.time() - started_s
    sites = [field.lab.line_bytes(site)["down"] for site in field.sites]
    cpu = cpu_of(field) - used
    if distribute is by_ted:
        _check_ted(field)
    else:
        check(field, lambda host: field.root_of(host) / TARGET.lstrip("/"))
    size = field.payload.stat().st_size
    return Sample(last_s, cpu, 0, {"line_bytes": max(sites), "of_bound": last_s / goodput_s(size, mbit_s)})


def _check_ted(field: Field) -> None:
    packs = [next(field.fleet.working(host).glob("dist/app/*/DISTFILE.TED")) for host in ["dist", *field.hosts]]
    if len({_digest(pack) for pack in packs}) != 1:
        raise RuntimeError("a host has something else")


def cpu_of(field: Field) -> float:
    """Return the CPU seconds that the controller, the hosts and the agents have used."""
    used: dict[str, float | None] = json.loads(field.lab.call("cpu", "--json"))
    agents = field.fleet._agents.values()  # noqa: SLF001 -- they run beside the lab's own accounts
    return sum(value or 0.0 for value in used.values()) + sum(cpu_s(agent.pid) for agent in agents)


def table(options: Options) -> Report:
    """Measure lines of 10 and of 50 Mbit/s; a new field for each run, since every program finds nothing there."""
    need(clush="clustershell", rsync="rsync", nginx="nginx-light", curl="curl", openssl="openssl")
    sites, hosts, size = (2, 3, 4) if options.quick else (6, 10, 64)
    peers = {"ted, playbooks/send.yml": by_ted, "rsync to a relay a site, and on from there": by_two_tier_rsync,
             "rsync:// to a relay a site, and from it": by_two_tier_rsyncd,
             "HTTP (nginx, curl) to a relay a site, and from it": by_two_tier_http,
             "HTTP likewise, the leaves when all relays have it": by_http_tier_by_tier,
             "HTTPS from relay to leaf as it comes, compared by SHA-256, and sync": by_two_tier_https,
             "clush --copy, tree": by_clush_tree, "ansible.builtin.copy, 60 forks": by_copy}  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for mbit_s in (10, 50):

        def contender(name: str, mbit_s: int = mbit_s) -> Contender:
            def run() -> Sample:
                with directory() as root:
                    field = build(root, sites, hosts, mbit_s, size * 1024 * 1024,
                                  with_agents=peers[name] is by_ted)
                    try:
                        with full_memory():
                            return measured(field, peers[name], mbit_s)
                    finally:
                        field.fleet.close()
                        field.lab.call("down")

            return Contender(name, run, rounds=1 if "copy" in name else None)

        rows += _rows(mbit_s, interleaved([contender(name) for name in peers], options.rounds))
    columns = ("each line", f"{size} MiB to {sites * hosts} hosts on {sites} sites", "last host, s, median (worst)",
               "of one copy at goodput", "MB into the fullest site", "CPU s, controller and hosts")  # fmt: skip
    return Report("fleet", "Sixty hosts on six sites", columns, rows,
                  ["HTTP and rsync:// go in the clear; all others are encrypted. HTTPS compares with a digest that is "
                   "there already; it has no client certificates and no signatures. All is in memory, which is full of "
                   "page cache when a run begins: a sync is free."])


def _rows(mbit_s: int, found: Samples) -> list[tuple[object, ...]]:
    return [(f"{mbit_s} Mbit/s", name, spread(found.median(name, "wall_s"), found.worst(name, "wall_s"), 1),
             f"{found.median(name, 'of_bound'):.2f}", mb(found.median(name, "line_bytes")),
             f"{found.median(name, 'cpu_s'):.0f}") for name in found]  # fmt: skip
