"""A fleet of real nodes on the loopback address, each a process of its own with real TLS."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import yaml

START_WITHIN_S = 90.0
AT_A_TIME = 8


_kept: dict[int, socket.socket] = {}


def free_port(in_a_row: int = 1) -> int:
    """Return a port (the first of several) of the loopback address that nobody listens on and nobody else is given.

    It lies below those that the system gives to connections, so none takes it while its agent is dead. A socket in the
    abstract name space keeps it from other tests on this machine until it is given back or this process ends.
    """
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        first = random.SystemRandom().randrange(10_000, max(first_given, 20_000) - in_a_row)
        if all(_keep(port) for port in range(first, first + in_a_row)):
            return first


def _keep(port: int) -> bool:
    """Keep a port for this process; return whether it is free."""
    kept = socket.socket(socket.AF_UNIX)
    try:
        kept.bind(f"\0ted-test-port-{port}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        kept.close()
        return False
    _kept[port] = kept
    return True


def give_back(port: int) -> None:
    """Let others have a port again; one that was not given is nobody's."""
    if (kept := _kept.pop(port, None)) is not None:
        kept.close()


class CommandError(AssertionError):
    """A command failed; ``error`` is what it said with ``--json``."""

    def __init__(self, command: list[str], done: subprocess.CompletedProcess[str]) -> None:
        try:
            self.error: dict[str, Any] = json.loads(done.stdout)["error"]
        except (ValueError, KeyError, TypeError):
            self.error = {}
        self.returncode = done.returncode
        super().__init__(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


class Fleet:
    """Nodes below one directory, with an inventory, an authority, and an agent each."""

    forks_agents = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hostvars: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[str]] = {"distributors": [], "subscribers": []}
        self.everyone: dict[str, Any] = {"ted_channels": {}}
        self.settings: dict[str, Any] = {"timeout": 20, "retry_interval": 1, "retry_for": 30}
        self.listens: dict[str, int] = {}
        self.inside: dict[str, list[str]] = {}  # what a node's agent is started through, such as ip netns exec
        self._agents: dict[str, forked.Forked | subprocess.Popen[bytes]] = {}

    # -- describing ------------------------------------------------------------------------------------

    def add(self, name: str, *, parent: str | None = None, channels: tuple[str, ...] = (), distributor: bool = False,
            **variables: Any) -> None:  # fmt: skip
        """Describe a node; ``variables`` are inventory variables without ``ted_``."""
        self.hostvars[name] = {
            "ted_address": "127.0.0.1", "ted_port": free_port(),
            "ted_working_directory": str(self.working(name)), "ted_config_directory": str(self.config(name)),
            **({"ted_parent": parent} if parent else {}),
            **{f"ted_{key}": value for key, value in variables.items()},
        }  # fmt: skip
        self.groups["distributors" if distributor else "subscribers"].append(name)
        for channel in channels:
            self.everyone["ted_channels"].setdefault(channel, {})
            self.groups.setdefault(channel, []).append(name)

    def config(self, name: str) -> Path:
        return self.root / name / "etc"

    def working(self, name: str) -> Path:
        return self.root / name / "var"

    def inventory(self) -> dict[str, Any]:
        hostvars = {name: {**self.everyone, **own} for name, own in self.hostvars.items()}
        groups = {name: {"hosts": hosts} for name, hosts in self.groups.items()}
        return {"_meta": {"hostvars": hostvars}, "all": {"children": [*groups, "ungrouped"]}, **groups}

    # -- setting up --------------------------------------------------------------------------------------

    def install(self) -> None:
        """Write every node's configuration, issue certificates, make keys, place trust."""
        self._authority()
        for name in self.hostvars:
            self.write_config(name)
            self._certify(name)
        self.place_inventory()
        for distributor in self.groups["distributors"]:
            self.ted(distributor, "keys", "create")
            root = self.ted_text(distributor, "trust", "export")
            for name in self.hostvars:
                if name != distributor:
                    self.ted(name, "trust", "import", "--distributor", distributor, "-", stdin=root)

    def write_config(self, name: str) -> None:
        own = self.hostvars[name]
        keys = ("address", "port", "working_directory", "parent", "variables", "extract_schedule", "min_free",
                "retry_interval", "retry_for", "timeout", "transport", "input_rate", "output_rates", "max_concurrent",
                "fill_spare_slots", "min_rate", "poll_interval")  # fmt: skip
        data = {**self.settings, **{key: own[f"ted_{key}"] for key in keys if f"ted_{key}" in own}}
        data["port"] = self.listens.get(name, own["ted_port"])
        data |= {"node": name, "listen": own["ted_address"], "distributor": name in self.groups["distributors"]}
        if "ted_parent" in own:
            above = self.hostvars[own["ted_parent"]]
            data |= {"parent_address": above["ted_address"], "parent_port": above["ted_port"]}
        self.config(name).mkdir(parents=True, exist_ok=True)
        (self.config(name) / "node.yml").write_text(yaml.safe_dump(data))

    def place_inventory(self) -> None:
        for distributor in self.groups["distributors"]:
            (self.config(distributor) / "topology.json").write_text(json.dumps(self.inventory()))

    def _authority(self) -> None:
        self._run(["--config", str(self.root / "authority"), "--json", "realm", "create", "test"])

    def _certify(self, name: str) -> None:
        address, out = self.hostvars[name]["ted_address"], str(self.config(name) / "realm")
        self._run(["--config", str(self.root / "authority"), "--json", "realm", "issue", name,
                   "--address", address, "--out", out])  # fmt: skip

    # -- agents ------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start agents (default: all) and wait until each answers; a few at a time."""
        wanted = names or tuple(self.hostvars)
        for first in range(0, len(wanted), AT_A_TIME):
            some = wanted[first : first + AT_A_TIME]
            for name in some:
                with (self.root / name / "agent.log").open("ab") as log:
                    self._agents[name] = self._agent(["--config", str(self.config(name)), "agent"], name, log.fileno())
            for name in some:
                self.await_agent(name)

    def _agent(self, words: list[str], name: str, log: int) -> forked.Forked | subprocess.Popen[bytes]:
        if self.forks_agents and name not in self.inside:
            with open(os.devnull, "rb") as nothing:
                return forked.Forked(words, stdin=nothing.fileno(), stdout=log, stderr=log)
        command = [*self.inside.get(name, ()), sys.executable, "-m", "ted", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_agent(self, name: str) -> None:
        from ted.agent.ask import call_agent
        from ted.errors import TedError

        deadline_s = time.monotonic() + START_WITHIN_S
        while True:
            try:
                call_agent(self.working(name) / ".ted", "status", timeout_s=5)
                return
            except (TedError, FileNotFoundError):
                if self._agents[name].poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(f"agent of {name} did not come up:\n{self.log(name)}") from None
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.root / name / "agent.log").read_text(errors="replace")[-5000:]

    def kill(self, name: str) -> None:
        """kill -9."""
        self._agents[name].kill()
        self._agents[name].wait(10)

    def pid(self, name: str) -> int:
        """Return the process id of a node's agent."""
        return self._agents[name].pid

    def running(self, name: str) -> bool:
        return name in self._agents and self._agents[name].poll() is None

    def close(self) -> None:
        for agent in self._agents.values():
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
        for agent in self._agents.values():
            try:
                agent.wait(10)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait(10)
        for own in self.hostvars.values():
            give_back(own["ted_port"])

    # -- commands ----------------------------------------------------------------------------------------

    def ted(self, name: str, *words: str, stdin: str | None = None) -> Any:
        """Run ``ted --json`` on a node and return what it says; a failure is ``CommandError``."""
        return self._run(["--config", str(self.config(name)), "--json", *words], stdin=stdin)

    def ted_text(self, name: str, *words: str) -> str:
        return self._call(["--config", str(self.config(name)), *words]).stdout

    def ted_warnings(self, name: str, *words: str) -> str:
        """Run ``ted`` on a node and return what it says beside its answer."""
        return self._call(["--config", str(self.config(name)), *words]).stderr

    def _run(self, words: list[str], stdin: str | None = None) -> Any:
        text = self._call(words, stdin).stdout
        return json.loads(text) if text.strip() else None

    def _call(self, words: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        done = forked.run(words, stdin, timeout_s=110)
        if done.returncode:
            raise CommandError(done.args, done)
        return done

    def states(self, distributor: str, distribution: str) -> dict[str, str]:
        rows = self.ted(distributor, "status", distribution)
        return {row["node"]: row["state"] for row in rows}

    def until(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        """Wait for something to become true."""
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline_s, "it did not happen in time"
            time.sleep(0.1)


def same_trees(source: Path, target: Path) -> str:
    """Return what another program (rsync) would change to make ``target`` equal to ``source``: nothing, when equal."""
    command = ["rsync", "-n", "-c", "-aHAX", "--delete", "--itemize-changes", f"{source}/", f"{target}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class CountingProxy:
    """Forwards TCP connections to a node and counts what crosses, both ways: a line with a meter.

    ``rate_bytes_s`` makes it a slow line; it may be changed at any time. Without ``queues`` next to nothing waits in
    it: what it counted is there.
    """

    def __init__(self, target_port: int, rate_bytes_s: float | None = None, *, queues: bool = True) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._piece_bytes = 65536 if queues else 4096
        if not queues:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._listener.setsockopt(socket.SOL_SOCKET, option, 8 * 1024)
        self.port = int(self._listener.getsockname()[1])
        self.bytes = 0
        self.connections = 0
        self.cut_at_once = 0
        """So many of the next connections are taken and closed before a byte crossed."""
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._pairs: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.cut_at_once:
                self.cut_at_once -= 1
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self.connections += 1
                self._open += [near, far]
            pair = threading.Thread(target=self._join, args=(near, far), daemon=True)
            self._pairs.append(pair)
            pair.start()

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        for end in (near, far):
            with self._lock:
                if end in self._open:
                    self._open.remove(end)
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(self._piece_bytes):
                with self._lock:
                    self.bytes += len(data)
                if self.rate_bytes_s:
                    time.sleep(len(data) / self.rate_bytes_s)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break every connection that is open now."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def zero(self) -> None:
        with self._lock:
            self.bytes = self.connections = 0

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        self.cut()
        for pair in self._pairs:
            pair.join(5)


def make_source(directory: Path, files: int = 40, size: int = 3000) -> Path:
    generator = random.Random(7)
    for number in range(files):
        path = directory / f"d{number % 5}" / f"file{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = " ".join(generator.choice(("alpha", "beta", "gamma", "delta", "omega")) for _ in range(size // 6))
        path.write_text(f"{number}\n{words}\n")
    (directory / "link").symlink_to("d0/file00000.txt")
    (directory / "empty").mkdir()
    return directory


def two_tiers(fleet: Fleet, leaves: int = 2, **options: object) -> None:
    """hq -> s01 -> e01, e02 ...; a distribution ``app`` on the channel ``pos``; s01 only relays."""
    fleet.add("hq", distributor=True, distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "%DEST%/app", "from": [f"{fleet.root}/source/"]}], **options}},
    })  # fmt: skip
    fleet.hostvars["hq"]["ted_routing_hierarchy"] = ["s01"]
    fleet.add("s01")
    for number in range(1, leaves + 1):
        name = f"e{number:02}"
        fleet.add(name, parent="s01", channels=("pos",), variables={"DEST": str(fleet.root / name / "dest")})
    make_source(fleet.root / "source")
