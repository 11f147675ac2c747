"""The FTP type from a vaulted password to two tiers and back, by playbook; and its page's example, run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from file_servers import PASSWORD, USER, Mlsd, Sftp, Vsftpd
from install_depot import Depot

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
RECEIVERS = ("s01", "s02", "e01")
OLD = 1_500_000_000


def make_files(root: Path) -> Path:
    for number in range(30):
        path = root / f"d{number % 3}" / f"driver {number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(2000))
        os.utime(path, (OLD + number, OLD + number))
    (root / "d0" / "install.sh").write_text("#!/bin/sh\n")
    (root / "d0" / "install.sh").chmod(0o755)
    os.utime(root / "d0" / "install.sh", (OLD, OLD))
    return root


def differences(one: Path, other: Path) -> str:
    """Return what rsync finds different: another program than ours."""
    command = ["rsync", "-n", "-c", "-a", "-O", "--delete", "--itemize-changes", f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def site(tree: Any) -> Iterator[Any]:
    """A tree whose only distribution comes from vsftpd with TLS; the password is in a vault."""
    tree.source = make_files(tree.root / "files")
    tree.inventory.joinpath("group_vars", "distributors.yml").unlink()
    key = tree.root / "vault-key"
    key.write_text("the key of the vault\n")
    encrypted = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-vault"), "encrypt_string", "--vault-password-file", str(key)],
        input=PASSWORD, text=True, capture_output=True, check=True, env=tree.environment,
    ).stdout  # fmt: skip
    with Vsftpd(tree.root / "server", tree.source, anonymous=False, tls="explicit") as server:
        settings = {
            "ted_routing_hierarchy": ["s01", "s02"],
            "ted_distributions": {"drivers": {"type": "ftp", "channels": ["software"], "options": {
                "servers": {"vendor": {"url": f"ftpes://127.0.0.1:{server.port}", "username": USER,
                                       "password": "{{ vaulted_password }}", "ca_file": str(server.ca_file)}},
                "targets": [{"path": "%DEST_VOLUME%/drivers", "from": ["vendor:/"], "synchronize": True}],
            }}},
        }  # fmt: skip
        text = f"{yaml.safe_dump(settings)}vaulted_password: {encrypted}"
        tree.inventory.joinpath("group_vars", "distributors.yml").write_text(text)
        tree.server = server
        tree.words = ("--vault-password-file", str(key))
        tree.said = tree.play("site", *tree.words, "--diff").output
        yield tree


def installed(tree: Any, host: str) -> Path:
    return Path(tree.run_directory / host / "root" / "drivers")


def test_what_a_server_has_reaches_both_tiers(site: Any) -> None:
    for host in RECEIVERS:
        assert differences(site.source, installed(site, host)) == ""


def test_an_update_and_its_rollback_reach_both_tiers(site: Any) -> None:
    asked = len(site.server.downloads())
    changed = site.source / "d0" / "driver 0.bin"
    before = changed.read_bytes()
    changed.write_bytes(os.urandom(2000))
    os.utime(changed, (OLD + 10**6, OLD + 10**6))
    (site.source / "d1" / "driver 1.bin").unlink()
    for playbook in ("build", "send", "extract"):
        site.said += site.play(playbook, *site.words, "-v").output
    assert site.server.downloads()[asked:] == ["/d0/driver 0.bin"]
    for host in RECEIVERS:
        assert differences(site.source, installed(site, host)) == ""
    site.said += site.play("rollback", *site.words, "-e", "ted_distribution=drivers").output
    for host in RECEIVERS:
        assert (installed(site, host) / "d0" / "driver 0.bin").read_bytes() == before
        assert (installed(site, host) / "d1" / "driver 1.bin").exists()


def test_a_failing_build_leaves_the_former_revision_and_tells_no_password(site: Any) -> None:
    site.server.close()
    said = site.play("build", *site.words, "-vvv", fails=True).output
    assert "are host and port right" in said
    site.said += said
    (row,) = [row for row in site.ted("hq", "report", "events") if row["kind"] == "build_failed"]
    assert "drivers" in str(row)


def test_the_password_is_where_the_tree_is_kept_and_nowhere_else(site: Any) -> None:
    assert PASSWORD not in site.said
    holders = [
        path for path in site.run_directory.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]
    assert [path.relative_to(site.run_directory).parts for path in holders] == [("hq", "etc", "topology.json")]
    assert holders[0].stat().st_mode & 0o077 == 0


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    """With servers of this machine in place of those that the page names."""
    page = (REPOSITORY / "docs" / "types" / "ftp.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    options = yaml.safe_load(text)["ted_distributions"]["drivers"]["options"]
    served = make_files(tmp_path / "served" / "pub" / "drivers").parents[1]
    (served / "pub" / "drivers" / "old").mkdir()
    (served / "pub" / "drivers" / "old" / "x").touch()
    (served / "gnu" / "hello").mkdir(parents=True)
    (served / "gnu" / "hello" / "hello.txt").write_text("hello\n")
    (tmp_path / "readme.txt").write_text("read me\n")
    depot = Depot(tmp_path / "depot")
    with (
        Vsftpd(tmp_path / "vendor", served, anonymous=False, tls="explicit") as vendor,
        Sftp(tmp_path / "lab") as lab,
        Mlsd(tmp_path / "gnu", served) as gnu,
    ):
        options["servers"]["vendor"] |= {
            "url": f"ftpes://127.0.0.1:{vendor.port}", "password": PASSWORD, "ca_file": str(vendor.ca_file),
        }  # fmt: skip
        options["servers"]["lab"] |= {
            "url": f"sftp://127.0.0.1:{lab.port}", "username": lab.user, "key_file": str(lab.key_file),
            "known_hosts": str(lab.known_hosts_file),
        }  # fmt: skip
        first, second = options.pop("targets")
        first["from"][1] = f"lab:{tmp_path}/readme.txt"
        second |= {"from": [f"ftp://127.0.0.1:{gnu.port}/gnu/hello/"], "path": str(tmp_path / "srv")}
        depot.build(first, second, type="ftp", **options)
    depot.extract()
    target = tmp_path / "depot" / "target" / "srv" / "drivers"
    assert (target / "readme.txt").read_text() == "read me\n"
    (target / "readme.txt").unlink()
    assert differences(served / "pub" / "drivers", target) == "cd+++++++++ old/\n>f+++++++++ old/x\n"
    assert (tmp_path / "srv" / "hello.txt").read_text() == "hello\n"
