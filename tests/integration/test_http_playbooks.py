"""The HTTP type through two tiers by playbook, and back; and no place where its secrets come to light."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from web_servers import PASSWORD, TOKEN, USER, Nginx, nginx

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

HOSTS = ("hq", "s01", "e01")
RECEIVERS = ("s01", "e01")
OLD_S = 1_600_000_000
WRONG = "canary-wrong-password"
QUERY = "signature=canary-signature"
CANARIES = (PASSWORD, TOKEN, WRONG, QUERY, "canary")


def write(path: Path, data: bytes, at_s: int = OLD_S) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at_s, at_s))


@pytest.fixture(scope="module")
def web(tree: Any) -> Iterator[Nginx]:
    served = tree.root / "served"
    for number in range(60):
        write(served / f"d{number % 3}" / f"file{number}", b"%d\n" % number * 50, OLD_S + number)
    with nginx(tree.root / "nginx", served) as server:
        configure(tree, server, PASSWORD)
        yield server


def configure(tree: Any, server: Nginx, password: str) -> None:
    """Make the tree distribute what a web server has behind a password, a token, a query."""
    private = {"url": f"{server.url}/private/", "username": USER, "password": password}
    bearer = {"url": f"{server.tls_url}/bearer/d1/", "token": TOKEN, "ca": server.ca, "query": QUERY}
    options = {"targets": [
        {"path": "%DEST_VOLUME%/web", "from": [private], "synchronize": True},
        {"path": "%DEST_VOLUME%/more", "from": [bearer]},
    ], "fetch_retries": 0}  # fmt: skip
    distributions = {"web": {"type": "http", "channels": ["software"], "options": options}}
    settings = {"ted_routing_hierarchy": ["s01"], "ted_distributions": distributions}
    (tree.inventory / "group_vars" / "distributors.yml").write_text(yaml.safe_dump(settings))


def differences(one: Path, other: Path) -> str:
    command = ["rsync", "-n", "-c", "-rt", "--omit-dir-times", "--delete", "-i", f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_web_directory_goes_through_two_tiers_and_back_and_no_secret_comes_to_light(tree: Any, web: Nginx) -> None:
    said = [tree.play("site", "--diff", "-v").output]
    for host in RECEIVERS:
        root = tree.run_directory / host / "root"
        assert differences(web.served, root / "web") == ""
        assert differences(web.served / "d1", root / "more") == ""

    before = tree.root / "before"
    shutil.copytree(web.served, before)
    write(web.served / "d0" / "file0", b"changed", OLD_S + 1000)
    write(web.served / "new", b"new")
    (web.served / "d2" / "file2").unlink()
    said.append(tree.play("site", "--diff", "-v").output)
    for host in RECEIVERS:
        assert differences(web.served, tree.run_directory / host / "root" / "web") == ""
    said.append(tree.play("rollback", "-v", "-e", "ted_distribution=web").output)
    for host in RECEIVERS:
        assert differences(before, tree.run_directory / host / "root" / "web") == ""

    topology = tree.run_directory / "hq" / "etc" / "topology.json"
    right = topology.read_text()
    topology.write_text(right.replace(PASSWORD, WRONG))
    refused = spoken(tree, "-v", "build")
    assert "answers 401" in refused
    topology.write_text(right.replace(QUERY, f"{QUERY}&more"))
    assert json.loads(spoken(tree, "--json", "build"))["changed"] is False, "another secret is no other revision"
    topology.write_text(right)
    assert found_in(tree, [*said, refused]) == []


def found_in(tree: Any, said: list[str]) -> list[str]:
    """Return where a secret is that should not be: in a file, in what a command said, in what a playbook said."""
    places = [f"playbook {number}" for number, text in enumerate(said) if any(c in text for c in CANARIES)]
    for words in ("check", "check --json", "status --json", "report events", "routes --json", "tree", "plan -v"):
        text = spoken(tree, *words.split())
        places += [words for canary in CANARIES if canary in text]
    for path in tree.run_directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            places += [str(path) for canary in CANARIES if canary.encode() in data]
    topology = tree.run_directory / "hq" / "etc" / "topology.json"
    assert str(topology) in places, "the search finds what is there"
    assert topology.stat().st_mode & 0o077 == 0
    return sorted({place for place in places if place != str(topology)})


def spoken(tree: Any, *words: str) -> str:
    command = ["ted", "--config", str(tree.run_directory / "hq" / "etc"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=tree.environment)
    return done.stdout + done.stderr


def test_a_build_shows_no_secret_in_the_list_of_processes_nor_in_its_environment(tree: Any, web: Nginx) -> None:
    big = web.served / "big"
    write(big, os.urandom(2 << 20))
    try:
        command = ["ted", "--config", str(tree.run_directory / "hq" / "etc"), "-v", "build", "--check"]
        with subprocess.Popen(command, env=tree.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as ted:
            seen = 0
            while ted.poll() is None:
                for pid in (path for path in Path("/proc").iterdir() if path.name.isdecimal()):
                    try:
                        shown = (pid / "cmdline").read_bytes()
                    except OSError:
                        continue
                    seen += 1
                    assert not any(canary.encode() in shown for canary in CANARIES)
            assert ted.stdout is not None
            text = ted.stdout.read().decode()
    finally:
        big.unlink()
    assert ted.returncode == 0, text
    assert seen > 10
    assert not any(canary in text for canary in CANARIES)
