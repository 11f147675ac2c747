"""The role and the playbooks over real SSH: a private sshd on the loopback address, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from ansible_tree import BIN, write_python
from database_server import postgresql

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
HOSTS = ("hq", "s01")


class Sshd:
    """An sshd of this test's own."""

    def __init__(self, root: Path, port: int) -> None:
        assert SSHD, "the tests need sshd: apt-get install openssh-server (scripts/test-packages does)"
        self.root, self.port = root, port
        root.mkdir(mode=0o700)
        for name in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)]
            subprocess.run(command, check=True, timeout=30)
        shutil.copy(root / "user_key.pub", root / "authorized_keys")
        host_key = (root / "host_key.pub").read_text().split()[:2]
        (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        (root / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {root}/host_key\nPidFile {root}/pid\n"
            f"AuthorizedKeysFile {root}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        self.process = subprocess.Popen(
            [SSHD, "-D", "-E", str(root / "log"), "-f", str(root / "config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await()

    def _await(self) -> None:
        deadline_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.root / "log").read_text()
                assert time.monotonic() < deadline_s, (self.root / "log").read_text()
            time.sleep(0.05)

    def sessions(self) -> list[int]:
        """Return the processes below this sshd, children first."""
        found, level = [], [self.process.pid]
        while level:
            text = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", ",".join(map(str, level))], capture_output=True, text=True, check=False
            ).stdout
            level = [int(word) for word in text.split()]
            found = level + found
        return found

    def variables(self) -> dict[str, Any]:
        return {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": str(self.root / "user_key"),
            "ansible_ssh_common_args": (
                f"-o UserKnownHostsFile={self.root}/known_hosts -o IdentitiesOnly=yes -F /dev/null"
            ),
        }

    def close(self) -> None:
        for pid in self.sessions():
            os.kill(pid, signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def remote(bare_tree: Any, database_url: str) -> Iterator[Any]:
    """Yield a tree of two hosts that are reached over SSH, each with a virtual environment of its own to come.

    The Distributor keeps its records in PostgreSQL.
    """
    sshd_port, *ports = bare_tree.free_ports(3)
    sshd = Sshd(bare_tree.root / "sshd", sshd_port)
    write_python(bare_tree.root / "python")
    inventory = {
        "all": {
            "vars": {
                "ted_package": bare_tree.wheel(),
                **sshd.variables(),
                "ansible_python_interpreter": sys.executable,
                "ted_address": "127.0.0.1",
                "ted_service": "process",
                "ted_python": str(bare_tree.root / "python"),
                "ted_pip_extra_args": "--no-deps",
                "ted_venv": f"{bare_tree.run_directory}/{{{{ inventory_hostname }}}}/venv",
                "ted_config_directory": f"{bare_tree.run_directory}/{{{{ inventory_hostname }}}}/etc",
                "ted_working_directory": f"{bare_tree.run_directory}/{{{{ inventory_hostname }}}}/ted",
                "ted_channels": {"software": {}},
            },
            "children": {
                "distributors": {
                    "hosts": {
                        "hq": {
                            "ted_port": ports[0],
                            "ted_distributions": distributions(bare_tree),
                            "ted_database_url": database_url,
                        }
                    }
                },
                "subscribers": {"children": {"software": {"hosts": {"s01": {"ted_port": ports[1]}}}}},
            },
        }
    }
    bare_tree.inventory = bare_tree.root / "hosts.yml"
    bare_tree.inventory.write_text(yaml.safe_dump(inventory))
    bare_tree.sshd = sshd
    try:
        yield bare_tree
    finally:
        bare_tree.close()
        sshd.close()


def distributions(tree: Any) -> dict[str, Any]:
    target = {"path": f"{tree.run_directory}/s01/root/stdlib", "from": [f"{tree.stdlib}/"], "synchronize": True}
    return {"stdlib": {"type": "file", "channels": ["software"], "options": {"targets": [target]}}}


def test_check_over_ssh_foretells_the_installation_and_changes_nothing(remote: Any) -> None:
    said = remote.play("install", "--check")
    assert all(said.changed[host] for host in HOSTS)
    assert not remote.run_directory.exists()


def test_the_role_installs_the_controllers_own_ted_over_ssh(remote: Any) -> None:
    said = remote.play("install")
    assert all(said.changed[host] for host in HOSTS)
    for host in HOSTS:
        venv = remote.run_directory / host / "venv"
        done = subprocess.run(
            [venv / "bin" / "ted", "--version"], capture_output=True, text=True, check=True, timeout=60
        )
        assert "version" in done.stdout
        assert list(venv.glob("lib/python3.*/site-packages/ted/__init__.py")), "not the controller's, but a copy"


def test_a_second_installation_over_ssh_changes_nothing(remote: Any) -> None:
    assert remote.play("install").changed == dict.fromkeys(HOSTS, 0)


def test_a_distribution_reaches_a_host_that_is_managed_over_ssh(remote: Any) -> None:
    remote.play("build")
    said = remote.play("send", "--limit", "s01")
    assert "hq" in said.output
    remote.play("extract")
    command = [
        "rsync",
        "-n",
        "-c",
        "-a",
        "--delete",
        "--itemize-changes",
        f"{remote.stdlib}/",
        f"{remote.installed('s01')}/",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_the_distributor_keeps_its_records_where_the_inventory_says(remote: Any, database_url: str) -> None:
    markers = {host: (remote.run_directory / host / "venv" / ".ted-package").read_text() for host in HOSTS}
    assert markers["hq"].split()[1:] == ["psycopg[binary]>=3.2"]
    assert markers["s01"].split() == markers["hq"].split()[:1]
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT node, state FROM states WHERE distribution = 'stdlib'").fetchall()
    assert ("s01", "extracted") in rows
    assert not (remote.run_directory / "hq" / "ted" / ".ted" / "records.sqlite").exists()


def test_a_limit_installs_one_host_with_the_help_of_those_outside_it(remote: Any) -> None:
    shutil.rmtree(remote.run_directory / "s01" / "etc" / "realm")
    shutil.rmtree(remote.run_directory / "s01" / "etc" / "trust")
    said = remote.play("install", "--limit", "s01")
    assert said.changed["s01"] > 0
    assert (remote.run_directory / "s01" / "etc" / "realm" / "node.pem").exists()
    assert (remote.run_directory / "s01" / "etc" / "trust" / "hq" / "root.json").exists()


def own_type(root: Path, description: str = "Files of a directory") -> Path:
    """Return a wheel of the package that ``ted types new`` writes; another description is another wheel of one name."""
    package = root / "ted-notes"
    if not package.exists():
        subprocess.run([BIN / "ted", "types", "new", "notes", "--directory", root], check=True, timeout=60)
    module = package / "ted_notes.py"
    module.write_text(module.read_text().replace("Files of a directory", description))
    words = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir"]
    pip = [sys.executable, "-m", "pip", "wheel"]
    subprocess.run([*pip, *words, str(root / "own"), str(package)], check=True, timeout=100)
    (wheel,) = (root / "own").glob("*.whl")
    return wheel


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_type_of_ones_own_comes_to_every_node_and_its_distribution_is_extracted(remote: Any) -> None:
    wheel = own_type(remote.root)
    inventory = yaml.safe_load(remote.inventory.read_text())
    everybody = inventory["all"]["vars"]
    hq = inventory["all"]["children"]["distributors"]["hosts"]["hq"]
    target = remote.run_directory / "s01" / "root" / "notes"
    options = {"source": str(remote.stdlib / "json"), "path": str(target)}
    hq["ted_distributions"]["notes"] = {"type": "notes", "channels": ["software"], "options": options}

    # Only where it is built: s01 relays and does not fail, but says what it lacks and how it comes there.
    hq["ted_type_packages"] = [str(wheel)]
    remote.inventory.write_text(yaml.safe_dump(inventory))
    said = remote.play("site", "-e", "ted_distribution=notes")
    assert "[WARNING]" in said.output
    words = " ".join(said.output.split())
    assert "notes is skipped: no distribution type 'notes' is installed here" in words
    assert "ted_type_packages" in words
    assert not target.exists()

    # One more package makes an existing environment another one, and its agent an old one.
    hq.pop("ted_type_packages")
    everybody["ted_type_packages"] = [str(wheel)]
    remote.inventory.write_text(yaml.safe_dump(inventory))
    foretold = remote.play("install", "--check")
    before = remote.ted("s01", "agent", "status")["pid"]
    done = remote.play("install")
    assert foretold.changed["s01"] > 0
    assert done.changed["s01"] > 0
    assert foretold.changed["hq"] == done.changed["hq"] == 0
    assert remote.ted("s01", "agent", "status")["pid"] != before
    assert "WARNING" not in remote.play("extract", "-e", "ted_distribution=notes").output
    assert (target / "__init__.py").read_bytes() == (remote.stdlib / "json" / "__init__.py").read_bytes()
    assert remote.play("site", "-e", "ted_distribution=notes").changed == dict.fromkeys(HOSTS, 0)

    # The same name and version, other content.
    own_type(remote.root, "Notes of a directory")
    assert all(count > 0 for count in remote.play("install").changed.values())
    for host in HOSTS:
        (module,) = (remote.run_directory / host / "venv").glob("lib/python3.*/site-packages/ted_notes.py")
        assert "Notes of a directory" in module.read_text()

    # A ted that somebody else put there is not the role's to add to.
    refused = remote.play("install", "--limit", "s01", "-e", "ted_package=none", fails=True)
    assert "by other means" in " ".join(refused.output.split())


def test_a_host_that_stops_answering_ends_the_play_soon(remote: Any) -> None:
    play = remote.root / "hang.yml"
    play.write_text(
        "- hosts: s01\n  gather_facts: false\n  tasks:\n"
        f"    - ansible.builtin.raw: touch {remote.root}/began; sleep 100\n      changed_when: false\n"
    )
    began_s = time.monotonic()
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(remote.inventory), str(play)]
    running = subprocess.Popen(
        command, env=remote.environment, cwd=remote.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    while not (remote.root / "began").exists():
        assert time.monotonic() - began_s < 90
        time.sleep(0.1)
    stopped_s = time.monotonic()
    for pid in remote.sshd.sessions():
        os.kill(pid, signal.SIGSTOP)
    output, _ = running.communicate(timeout=60)
    assert "UNREACHABLE" in output
    assert time.monotonic() - stopped_s < 60
