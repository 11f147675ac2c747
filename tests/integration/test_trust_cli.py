"""``ted keys``, ``ted trust`` and ``ted realm`` as a play calls them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ted.trust.catalog import Catalog
from ted.trust.realm import NodeIdentity


class Node:
    """A configuration and a working directory, and the command run on them."""

    def __init__(self, base: Path, name: str) -> None:
        self.config, self.working = base / name / "etc", base / name / "lib"
        self.config.mkdir(parents=True)
        (self.config / "node.yml").write_text(f"node: {name}\nworking_directory: {self.working}\n")

    def run(self, *words: str, status: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", "from ted.cli.main import main; main()"]
        command = [*program, "--config", str(self.config), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, input=stdin, check=False)
        assert done.returncode == status, done.stderr
        return done

    def json(self, *words: str, status: int = 0, stdin: str | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(*words, "--json", status=status, stdin=stdin).stdout)
        return answer


@pytest.fixture
def hq(tmp_path: Path) -> Node:
    return Node(tmp_path, "hq")


@pytest.fixture
def s01(tmp_path: Path) -> Node:
    return Node(tmp_path, "s01")


def test_keys_are_made_once_and_check_tells_the_truth(hq: Node) -> None:
    assert hq.json("keys", "create", "--check")["changed"] is True
    assert not (hq.config / "keys").exists()
    made = hq.json("keys", "create", "--distributor", "hq")
    assert made["changed"] is True
    assert made["distributor"] == "hq"
    assert {role["role"] for role in made["roles"]} == {"root", "targets", "snapshot", "timestamp"}
    assert stat.S_IMODE((hq.config / "keys").stat().st_mode) == 0o700
    assert (hq.working / "hq/.catalog/root.json").read_text() == made["root"]
    assert "PRIVATE" not in json.dumps(made)
    again = [hq.json("keys", "create", *words) for words in ((), ("--check",))]
    assert [answer["changed"] for answer in again] == [False, False]


def test_the_working_directory_and_the_name_can_be_given(tmp_path: Path) -> None:
    node = Node(tmp_path, "nobody")
    (node.config / "node.yml").unlink()
    missing = node.json("keys", "create", status=10)
    assert missing["error"]["type"] == "ConfigError"
    assert "--distributor NAME" in missing["error"]["hint"]
    where = tmp_path / "elsewhere"
    node.json("keys", "create", "--distributor", "x", "--working-directory", str(where))
    assert (where / "x/.catalog/timestamp.json").is_file()
    assert node.json("keys", "create", "--distributor", "../x", status=13)["error"]["type"] == "UnknownNameError"


def test_keys_are_listed_rotated_and_renewed(hq: Node) -> None:
    hq.json("keys", "create")
    before = {role["role"]: role for role in hq.json("keys", "list")["roles"]}
    assert all(role["private_key_here"] for role in before.values())
    assert hq.json("keys", "rotate", "timestamp", "--check")["changed"] is True
    rotated = hq.json("keys", "rotate", "timestamp")
    after = {role["role"]: role for role in hq.json("keys", "list")["roles"]}
    assert after["timestamp"]["keyids"] == [rotated["keyid"]] != before["timestamp"]["keyids"]
    assert after["root"]["version"] == 2
    assert hq.json("trust", "list")["distributors"][0]["version"] == 2
    assert hq.json("keys", "renew")["changed"] is False
    assert "private key" in hq.run("keys", "list").stdout
    assert hq.json("keys", "rotate", "nothing", status=13)["error"]["type"] == "UnknownNameError"


def test_a_root_travels_from_export_to_import_as_a_play_does_it(hq: Node, s01: Node, tmp_path: Path) -> None:
    root = hq.json("keys", "create")["root"]
    assert hq.run("trust", "export").stdout.strip() == root.strip()
    exported = hq.json("trust", "export")
    assert (exported["root"], exported["distributor"], exported["changed"]) == (root, "hq", False)
    file = tmp_path / "root.json"
    assert hq.json("trust", "export", str(file), "--check")["changed"] is True
    assert [hq.json("trust", "export", str(file))["changed"] for _ in range(2)] == [True, False]
    words = ("trust", "import", str(file), "--distributor", "hq")
    answers = [s01.json(*words, *extra)["changed"] for extra in (("--check",), (), ("--check",), ())]
    assert answers == [True, True, False, False]
    for same in (root, root + "\n", json.dumps(json.loads(root), indent=4)):
        assert s01.json("trust", "import", "-", stdin=same)["changed"] is False
    (listed,) = s01.json("trust", "list")["distributors"]
    assert (listed["distributor"], listed["version"], listed["threshold"]) == ("hq", 1, 1)
    assert "hq" in s01.run("trust", "list").stdout
    answers = [s01.json("trust", "remove", "hq", *extra)["changed"] for extra in (("--check",), (), ())]
    assert answers == [True, True, False]


def test_import_refuses_what_is_no_root_of_this_distributor(hq: Node, s01: Node, tmp_path: Path) -> None:
    root = hq.json("keys", "create")["root"]
    wrong = s01.json("trust", "import", "-", "--distributor", "branch", stdin=root, status=24)
    assert wrong["error"]["message"] == "this is the root of hq, not of branch"
    broken = root.replace('"version":1', '"version":2')
    assert s01.json("trust", "import", "-", stdin=broken, status=24)["error"]["type"] == "TrustError"
    assert s01.json("trust", "import", "-", stdin="garbage", status=24)["error"]["type"] == "TrustError"
    (tmp_path / "garbage.json").write_text("garbage")
    for words, name in (((), "garbage.json: not a root"), (("--distributor", "hq"), "garbage.json: not a root")):
        told = s01.json("trust", "import", str(tmp_path / "garbage.json"), *words, status=24)["error"]["message"]
        assert name in told
    told = s01.json("trust", "import", "-", stdin="garbage", status=24)["error"]["message"]
    assert told.startswith("standard input: not a root")
    missing = s01.json("trust", "import", str(tmp_path / "nothing"), status=10)
    assert "cannot be read" in missing["error"]["message"]
    hq.json("keys", "rotate", "root")
    s01.json("trust", "import", "-", stdin=hq.json("trust", "export")["root"])
    assert s01.json("trust", "import", "-", stdin=root, status=26)["error"]["type"] == "ReplayError"
    assert s01.json("trust", "import", "-", "--force", stdin=root)["former_version"] == 2
    unknown = s01.json("trust", "export", "--distributor", "nobody", status=25)
    assert unknown["error"]["type"] == "UntrustedDistributorError"


def test_a_node_is_enrolled_without_its_key_leaving_it(hq: Node, s01: Node) -> None:
    answers = [
        hq.json("realm", "create", "example", *extra)["changed"] for extra in (("--check",), (), ("--check",), ())
    ]
    assert answers == [True, True, False, False]
    words = ("realm", "request", "s01", "--address", "10.77.0.1", "--address", "s01.example.net")
    answers = [s01.json(*words, *extra)["changed"] for extra in (("--check",), (), ("--check",), ())]
    assert answers == [True, True, False, False]
    csr = s01.json(*words)["csr"]
    issue = ("realm", "issue", "s01", "--csr", "-")
    answers = [hq.json(*issue, *extra, stdin=csr)["changed"] for extra in (("--check",), (), ("--check",), ())]
    assert answers == [True, True, False, False]
    issued = hq.json(*issue, stdin=csr)
    assert issued["addresses"] == ["10.77.0.1", "s01.example.net"]
    assert issued["ca"] == hq.json("realm", "export")["ca"]
    assert "PRIVATE" not in json.dumps(issued)
    (s01.config / "realm/node.pem").write_text(issued["certificate"])
    (s01.config / "realm/ca.pem").write_text(issued["ca"])
    NodeIdentity(s01.config / "realm").server_context()
    assert s01.run("realm", "export").stdout == issued["ca"]
    wrong = hq.json("realm", "issue", "s02", "--csr", "-", stdin=csr, status=24)
    assert wrong["error"]["message"] == "this request is for node s01, not for s02"


def test_a_certificate_can_be_issued_to_a_directory(hq: Node, tmp_path: Path) -> None:
    assert "ted realm create" in hq.json("realm", "issue", "s01", status=10)["error"]["hint"]
    assert "ted realm create" in hq.json("realm", "export", status=10)["error"]["hint"]
    hq.json("realm", "create", "example")
    words = ("realm", "issue", "s01", "--address", "a.example", "--out", str(tmp_path / "stick"))
    assert [hq.json(*words)["changed"] for _ in range(2)] == [True, False]
    assert {path.name for path in (tmp_path / "stick").iterdir()} == {"ca.pem", "node.key", "node.pem"}
    assert NodeIdentity(tmp_path / "stick").name == "s01"


def test_other_programs_believe_the_certificates(hq: Node, tmp_path: Path) -> None:
    hq.json("realm", "create", "example")
    hq.json("realm", "issue", "s01", "--address", "127.0.0.1", "--out", str(tmp_path / "s01"))
    for purpose in ("sslserver", "sslclient"):
        words = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_ip", "127.0.0.1"]
        words += ["-CAfile", str(tmp_path / "s01/ca.pem"), str(tmp_path / "s01/node.pem")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout.endswith("OK\n"), done.stderr


def test_a_lost_root_key_is_named(hq: Node) -> None:
    hq.json("keys", "create")
    key = next((hq.config / "keys").glob("root.*.pem"))
    key.unlink()
    roles = {role["role"]: role for role in hq.json("keys", "list")["roles"]}
    assert roles["root"]["private_key_here"] is False
    assert "elsewhere" in hq.run("keys", "list").stdout
    error = hq.json("keys", "rotate", "snapshot", status=24)["error"]
    assert key.name in error["hint"]
    Catalog(hq.working / "hq/.catalog", hq.config / "keys").publish("dat", {})
