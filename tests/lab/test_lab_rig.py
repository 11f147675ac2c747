"""The rig itself: what the other lab tests take for granted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from lab_rig import HERE, WIRE, Lab

pytestmark = pytest.mark.lab
SITES = {"hq": {"hosts": ["here", "there"]}, "far": {"hosts": ["away"], "wan": "20mbit"},
         "home": {"hosts": ["hidden"], "nat": True}}  # fmt: skip
SERVE = """
import socket
s = socket.create_server(("::", 9), family=socket.AF_INET6, dualstack_ipv6=True)
c, _ = s.accept()
"""
TAKE = SERVE + "n=0\nwhile d:=c.recv(65536): n+=len(d)\nprint(n)"
GIVE = """
import socket, struct, sys
s = socket.create_connection((sys.argv[1], 9))
s.sendall(bytes(int(sys.argv[2])))
s.shutdown(socket.SHUT_WR)
s.recv(1)
info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
segments, = struct.unpack_from("=I", info, 136)
sent_bytes, = struct.unpack_from("=Q", info, 200)
print(segments, sent_bytes)
"""


class Sent(NamedTuple):
    """What a connection was, by the system of the one who sent: bytes and segments count what was sent again too."""

    took_s: float
    sent_bytes: int
    segments: int


def send(lab: Lab, sender: str, receiver: str, size: int, *, ip6: bool = False) -> Sent:
    """Carry bytes from one host to another by TCP."""
    with subprocess.Popen([*lab.inside(receiver), sys.executable, "-c", TAKE], stdout=subprocess.PIPE) as taking:
        time.sleep(0.5)
        give = [*lab.inside(sender), sys.executable, "-c", GIVE, lab.address(receiver, ip6=ip6), str(size)]
        started_s = time.monotonic()
        told = subprocess.run(give, check=True, timeout=60, stdout=subprocess.PIPE).stdout.split()
        said, _ = taking.communicate(timeout=60)
        assert int(said) == size
        return Sent(time.monotonic() - started_s, int(told[1]), int(told[0]))


@pytest.mark.parametrize("ip6", [False, True])
def test_a_line_carries_its_rate_both_ways_and_counts_every_byte(lab_of: Callable[..., Lab], ip6: bool) -> None:
    lab = lab_of(SITES)
    size = 4_000_000
    a_segment = 1514 - 1448 if not ip6 else 1514 - 1428
    headers = WIRE if not ip6 else 1514 / 1428
    for way, sender, receiver in (("down", "here", "away"), ("up", "away", "here")):
        lab.call("bytes", "--zero")
        sent = send(lab, sender, receiver, size, ip6=ip6)
        counted = lab.line_bytes("far")[way]
        assert size * headers * 0.99 < counted < (sent.sent_bytes + sent.segments * a_segment) * 1.01
        assert sent.took_s > size * headers * 8 / 20e6 * 0.95
    lab.call("link", "far", "80mbit")
    assert send(lab, "here", "away", size, ip6=ip6).took_s < size * headers * 8 / 20e6


def test_a_cut_line_carries_nothing_until_it_is_mended(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of(SITES)
    ping = [*lab.inside("here"), "ping", "-c", "1", "-W", "1", lab.address("away")]
    lab.call("link", "far", "down")
    assert subprocess.run(ping, capture_output=True, check=False).returncode
    lab.call("link", "far", "up")
    assert not subprocess.run(ping, capture_output=True, check=False).returncode


def test_a_host_has_its_own_name_files_and_sshd_and_keeps_its_disk_through_a_power_cut(
    lab_of: Callable[..., Lab],
) -> None:
    lab = lab_of(SITES)
    ssh = ["run", "ssh", "-F", str(lab.home / lab.name / "ssh" / "config"), "-o", "ConnectTimeout=3"]
    assert lab.call(*ssh, "away", "hostname; echo kept >/srv/file; ls /root | wc -l").split() == ["away", "0"]
    assert lab.call(*ssh, "-6", "-o", f"HostName={lab.address('away', ip6=True)}", "away", "hostname").strip() == "away"
    lab.call("kill", "away")
    assert lab.call(*ssh, "away", "true", check=False) == ""
    assert "off" in next(line for line in lab.call("status").splitlines() if line.startswith("away"))
    lab.call("start", "away")
    assert lab.call(*ssh, "away", "cat /srv/file").strip() == "kept"
    assert not Path("/srv/file").exists()


def test_a_host_that_asks_for_systemd_boots_it_starts_what_is_enabled_and_leaves_nothing(
    lab_of: Callable[..., Lab],
) -> None:
    lab = lab_of({"hq": {"hosts": ["here"]}, "far": {"hosts": ["away"], "systemd": True}})

    def inside(command: str) -> list[str]:
        return lab.call("exec", "away", command).split()

    unit = "[Service]\\nExecStart=/bin/sleep 1000\\n[Install]\\nWantedBy=multi-user.target\\n"
    ssh = ["run", "ssh", "-F", str(lab.home / lab.name / "ssh" / "config"), "away"]
    lab.call(*ssh, f"printf '{unit}' >/etc/systemd/system/one.service; systemctl enable --now one")
    assert inside("cat /proc/1/comm; systemctl is-active one multi-user.target") == ["systemd", "active", "active"]
    (pid,) = inside("systemctl show one -P MainPID")
    assert inside("cat /sys/fs/cgroup/system.slice/one.service/cgroup.procs; pgrep -x sleep") == [pid, pid]
    assert inside("for name in /sys /proc/sys; do findmnt -no OPTIONS $name | cut -d, -f1; done") == ["ro", "ro"]
    lab.call("kill", "away")
    lab.call("start", "away")
    assert inside("until systemctl -q is-active one; do sleep 0.1; done; hostname") == ["away"]
    lab.call("down")
    assert not list(Path("/sys/fs/cgroup").glob(f"**/ted-lab-{lab.name}"))


def test_the_inventory_of_a_lab_is_one_for_ansible(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of(SITES)
    inventory = lab.home / lab.name / "inventory.yml"
    done = lab.call("run", str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(inventory), "--list")
    found = json.loads(done)
    assert found["far"]["hosts"] == ["away"]
    assert found["_meta"]["hostvars"]["away"]["lab_ip6"] == lab.address("away", ip6=True)


def test_a_host_behind_nat_reaches_others_and_is_reached_by_nobody(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of(SITES)
    ping = ["ping", "-c", "1", "-W", "1"]
    for ip6 in (False, True):
        out = [*lab.inside("hidden"), *ping, lab.address("here", ip6=ip6)]
        into = [*lab.inside("here"), *ping, lab.address("hidden", ip6=ip6)]
        assert not subprocess.run(out, capture_output=True, check=False).returncode
        assert subprocess.run(into, capture_output=True, check=False).returncode


def test_a_lab_is_gone_when_whoever_made_it_is_killed(tmp_path: Path) -> None:
    name = f"o{os.getpid()}"
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"sites": SITES}))
    env = {**os.environ, "LAB_NAME": name, "LAB_HOME": str(tmp_path / "lab")}
    with subprocess.Popen(["sleep", "100"]) as owner:
        command = [sys.executable, str(HERE / "lab"), "up", str(spec), "--owner", str(owner.pid)]
        subprocess.run(command, env=env, check=True, capture_output=True)
        inside = subprocess.Popen(["ip", "netns", "exec", f"{name}.h.away", "sleep", "100"])
        owner.send_signal(signal.SIGKILL)
    inside.wait(20)
    deadline_s = time.monotonic() + 20
    while (tmp_path / "lab").exists() or f"{name}." in subprocess.check_output(["ip", "netns"], text=True):
        assert time.monotonic() < deadline_s, "something of the lab is left"
        time.sleep(0.1)
