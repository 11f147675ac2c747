"""Packages of both kinds and an application through two tiers by playbook, and back, as other programs see them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from package_depot import Workshop, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

RECEIVERS = ("s01", "e01")
KINDS = ("rpm", "deb", "desktop")


@pytest.fixture(scope="module")
def site(bare_tree: Any) -> Any:
    bare_tree.copy_demo(("hq", "s01", "e01"))
    bare_tree.workshop = Workshop(bare_tree.root / "workshop")
    return bare_tree


def configure(tree: Any, version: str, **more: Any) -> None:
    """Have the tree distribute ``lib`` and ``app`` in this version, as RPM and Debian packages, and an application."""
    shop = tree.workshop
    distributions = {"desktop": {"type": "desktop", "channels": ["software"], "options": application(tree, version)}}
    for kind, build, needs in (
        ("rpm", shop.rpm, f"Requires: lib = {version}"), ("deb", shop.deb, f"Depends: lib (= {version})"),
    ):  # fmt: skip
        packages = [str(build("app", version, tags=needs)), str(build("lib", version))]
        options = {"packages": packages, "signature": "none", "root": f"%DEST_VOLUME%/{kind}", **more}
        distributions[kind] = {"type": kind, "channels": ["software"], "options": options}
    settings = {"ted_routing_hierarchy": ["s01"], "ted_distributions": distributions}
    (tree.inventory / "group_vars" / "distributors.yml").write_text(yaml.safe_dump(settings))


def application(tree: Any, version: str) -> dict[str, Any]:
    """Return the options of an application whose program says its version."""
    program = tree.root / "golden" / "bin" / "till"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    entry = {"Name": "Till", "Exec": "bin/till %f", "Categories": "Office;"}
    till = {"name": "till", "version": version, "from": [f"{tree.root}/golden/"], "entry": entry}
    return {"applications": [till]}


def started(tree: Any, host: str) -> str:
    """Return what the application says when it is started as its entry says, once the desktop has accepted that."""
    path = tree.run_directory / host / "root/usr/local/share/applications/till.desktop"
    run("desktop-file-validate", "--no-hints", str(path))
    command = next(line for line in path.read_text().splitlines() if line.startswith("Exec=")).removeprefix("Exec=")
    return run(*command.removesuffix(" %f").split()).strip()


def installed(tree: Any, host: str) -> dict[str, dict[str, str]]:
    """Return kind -> name -> version, as the package managers say."""
    root = tree.run_directory / host / "root"
    rpm = run("rpm", "--root", str(root / "rpm"), "-qa", "--qf", "%{NAME} %{VERSION}\n")
    deb = run("dpkg", f"--root={root / 'deb'}", "-l", check=False).splitlines()[5:]
    rows = [line.split() for line in deb]
    return {
        "rpm": dict(line.split(" ") for line in rpm.splitlines()),
        "deb": {row[1]: row[2] for row in rows if row[0] == "ii"},
    }


def both(version: str) -> dict[str, dict[str, str]]:
    return {kind: {"app": version, "lib": version} for kind in ("rpm", "deb")}


def items(tree: Any, host: str, *words: str) -> list[tuple[str, str, str, str]]:
    rows = tree.ted(host, *words)["distributions"]
    return sorted((row["distribution"], item["name"], item["what"], str(item["after"]).removesuffix("-1"))
                  for row in rows for item in row["things"])  # fmt: skip


def test_packages_go_through_two_tiers_and_back(site: Any) -> None:
    configure(site, "1")
    site.play("site")
    for host in RECEIVERS:
        assert installed(site, host) == both("1")
        assert started(site, host) == "1"
    assert set(site.play("site").changed.values()) == {0}

    configure(site, "2")
    for playbook in ("install", "build", "send"):
        site.play(playbook)
    told = site.play("extract", "--check", "--diff").output
    assert installed(site, "e01") == both("1")
    assert all(word in told for word in ("app", "lib", "2-1"))
    foretold = items(site, "s01", "extract", "--check")
    assert foretold == [(kind, name, "upgraded", "2") for kind in ("deb", "rpm") for name in ("app", "lib")]
    assert items(site, "s01", "extract") == foretold
    site.play("extract")
    for host in RECEIVERS:
        assert installed(site, host) == both("2")
        assert started(site, host) == "2"
    events = [row["message"] for row in site.ted("s01", "report", "events") if row["kind"] == "item"]
    assert "lib: upgraded, 1-1 -> 2-1" in events

    run("rpm", "--root", str(site.run_directory / "e01/root/rpm"), "-e", "app")
    drifted = verify(site, "e01")
    assert [(row["distribution"], row["path"], row["what"]) for row in drifted] == [("rpm", "app", "missing")]
    site.ted("e01", "verify", "--repair")
    assert installed(site, "e01") == both("2")

    for kind in KINDS:
        site.play("rollback", "-e", f"ted_distribution={kind}")
    for host in RECEIVERS:
        assert installed(site, host) == both("1")
        assert started(site, host) == "1"
    known = {(row["node"], row["distribution"]): row["state"] for row in site.ted("hq", "status")}
    assert known == {(host, kind): "rolled_back" for host in RECEIVERS for kind in KINDS}


def verify(tree: Any, host: str) -> list[dict[str, Any]]:
    command = ["ted", "--config", str(tree.run_directory / host / "etc"), "--json", "verify"]
    data = json.loads(run(*command, check=False, env=tree.environment))
    return list(data["problems"])
