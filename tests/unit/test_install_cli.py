"""``ted extract``, ``rollback``, ``verify``, ``types``: one document each, true exit codes, states on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fleet import CommandError, Fleet, same_trees, two_tiers
from install_depot import DISTRIBUTOR, NAME, Depot

from ted.cli.common_install import counted, host_of, report_failure
from ted.cli.main import main
from ted.cli.verify_cmd import _text
from ted.config import NodeConfig
from ted.errors import TargetError
from ted.install.state import EXTRACTED, FAILED, Installed, Step
from ted.install.verify import Problem
from ted.plugins import Plugins
from ted.records.journal import Journal
from ted.records.states import State
from ted.trust.realm import RealmAuthority

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "a.txt").write_text("one\n")
    (source / "d" / "b.txt").write_text("one\n")
    return source


@pytest.fixture
def hq(fleet: Fleet, source: Path) -> Fleet:
    """A Distributor by itself, with two distributions of its own, built."""
    options = {"targets": [{"path": "%DEST_VOLUME%/app", "from": [f"{source}/"], "synchronize": True}]}
    fleet.add("hq", distributor=True, channels=("all",), variables={"DEST_VOLUME": str(fleet.root / "dest")},
              distributions={
                  "app": {"type": "file", "channels": ["all"], "options": options},
                  "other": {"type": "file", "channels": ["all"], "priority": "high",
                            "options": {"targets": [{"path": "%NOWHERE%", "from": [f"{source}/"]}]}},
              })  # fmt: skip
    fleet.install()
    fleet.ted("hq", "build")
    return fleet


@pytest.fixture
def run(hq: Fleet, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``ted --json`` on hq, in this process, and returns exit code and document."""

    def run(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = 0
        try:
            main(["--config", str(hq.config("hq")), "--json", *words])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads(capsys.readouterr().out)

    return run


def test_extract_check_apply_check_apply_and_the_way_back(hq: Fleet, run: Run, source: Path) -> None:
    target = hq.root / "dest" / "app"
    seen = []
    for words in (("--check",), ("--diff",), ("--check",), ()):
        code, data = run("extract", "app", *words)
        assert code == 0
        seen.append(data["changed"])
        assert target.exists() == (words != ("--check",) or len(seen) > 1)
    assert seen == [True, True, False, False]
    assert same_trees(source, target) == ""
    (row,) = data["distributions"]
    assert {"distributor", "distribution", "revision", "state", "changed", "actions", "error", "diff"} <= row.keys()
    assert (row["distributor"], row["distribution"], row["state"]) == ("hq", "app", "extracted")
    state = hq.ted("hq", "status", "app")
    assert [(each["node"], each["state"]) for each in state] == [("hq", "extracted")]
    code, data = run("rollback", "app", "--check", "--diff")
    assert (code, data["changed"], target.exists()) == (0, True, True)
    assert {change["change"] for change in data["distributions"][0]["diff"]} == {"deleted"}
    code, data = run("rollback", "app")
    assert (code, data["distributions"][0]["state"], target.exists()) == (0, "rolled_back", False)
    code, data = run("rollback", "app")
    assert (code, data["error"]["type"]) == (45, "NothingToRollBackError")


def test_one_that_fails_is_named_and_the_others_are_extracted(hq: Fleet, run: Run, source: Path) -> None:
    code, data = run("extract", "app", "other")
    assert (code, data["error"]["type"]) == (42, "VariableError")
    assert "%NOWHERE%" in data["error"]["message"]
    assert [(row["distribution"], row["state"]) for row in data["distributions"]] == [
        ("other", "failed"), ("app", "extracted"),
    ]  # fmt: skip
    assert same_trees(source, hq.root / "dest" / "app") == ""
    (row,) = hq.ted("hq", "status", "other")
    assert row["state"] == "failed"
    assert "%NOWHERE%" in row["error"]


def test_what_is_not_known_is_said_with_what_to_do(run: Run) -> None:
    code, data = run("extract", "nothing")
    assert (code, data["error"]["type"]) == (13, "UnknownNameError")
    assert data["error"]["hint"]
    assert run("verify", "ap")[1]["error"]["hint"] == "did you mean app?"
    assert run("extract", "--revision", "20260101T000000000000Z")[0] == 14
    code, data = run("extract", "app", "--revision", "20260101T000000000000Z")
    assert (code, data["error"]["hint"].startswith("here are 20")) == (13, True)
    assert "`ted send app --revision ...`" in data["error"]["hint"]
    assert run("rollback", "app")[0] == 45
    run("extract", "app")
    code, data = run("rollback", "ap")
    assert (code, data["error"]["hint"]) == (45, "did you mean app?")


def test_verify_finds_and_mends_drift_and_finds_damage_of_the_store(hq: Fleet, run: Run, source: Path) -> None:
    run("extract", "app")
    assert run("verify") == (0, {"ok": True, "changed": False, "problems": [], "repaired": [], "unjudged": []})
    target = hq.root / "dest" / "app"
    (target / "a.txt").write_text("two\n")
    (target / "extra").write_text("x")
    code, data = run("verify", "--installed")
    assert (code, data["ok"], data["error"]["type"]) == (46, False, "DriftError")
    assert {Path(problem["path"]).name: problem["what"] for problem in data["problems"]} == {
        "a.txt": "content", "extra": "extra", "app": "attributes",
    }  # fmt: skip
    code, data = run("verify", "--repair")
    assert (code, data["ok"], data["changed"]) == (0, True, True)
    assert same_trees(source, target) == ""
    (pack,) = hq.working("hq").glob("hq/app/*/DISTFILE.TED")
    damaged = bytearray(pack.read_bytes())
    damaged[40] ^= 255
    pack.write_bytes(damaged)
    code, data = run("verify", "app", "--stored")
    assert (code, data["error"]["type"], data["problems"][0]["where"]) == (22, "DigestMismatchError", "stored")


def test_without_its_type_a_distribution_is_skipped_with_a_warning_and_verify_says_what_it_cannot_judge(
    hq: Fleet, run: Run, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("extract", "app")
    monkeypatch.setattr("ted.install.host.installed", lambda: Plugins([]))
    assert run("extract", "other")[1]["distributions"][0]["hint"].startswith("install the package that brings it")
    with suppress(SystemExit):
        main(["--config", str(hq.config("hq")), "extract", "other"])
    told = capsys.readouterr()
    assert "skipped" in told.out
    assert "ted: warning: other: skipped, no distribution type 'file' is installed here" in told.err
    assert "ted_type_packages" in told.err

    (source / "a.txt").write_text("two\n")
    code, data = run("verify")
    assert (code, data["ok"], data["problems"]) == (60, False, [])
    (unjudged,) = data["unjudged"]
    assert (unjudged["distribution"], unjudged["where"]) == ("app", "installed")
    with pytest.raises(SystemExit) as end:
        main(["--config", str(hq.config("hq")), "verify"])
    told = capsys.readouterr()
    assert end.value.code == 60
    assert "app: what is installed cannot be judged: no distribution type 'file' is installed here" in told.out
    assert "everything" not in told.out
    assert run("verify", "--stored")[0] == 0


def test_a_forged_record_is_never_extracted(hq: Fleet, run: Run) -> None:
    (record,) = hq.working("hq").glob("hq/app/*/REVISION.TED")
    record.write_bytes(record.read_bytes().replace(b'"files":2', b'"files":3'))
    code, data = run("extract", "app")
    assert 20 <= code < 30
    assert data["error"]["message"] == f"{record} is not what was signed"
    assert "ted build --force" in data["error"]["hint"]
    assert not (hq.root / "dest").exists()
    (problem,) = run("verify", "app", "--stored")[1]["problems"]
    assert problem["what"] == f"{record} is not what was signed"


def test_what_is_stored_damaged_is_told_within_the_width_of_a_terminal() -> None:
    before, stamp = "20261121T000000000000Z", "20261122T125447123456Z"
    place = f"/var/lib/ted/hq/app/{stamp}"
    stored = Problem("hq", "app", stamp, "stored", place, f"block 3 of {place}/DISTFILE.TED is damaged")
    patch = Problem("hq", "app", stamp, "stored", f"{place}/PATCH-{before}",
                    f"block 0 of {place}/PATCH-{before}/DISTFILE.TED is damaged", patch_from=before)  # fmt: skip
    drift = Problem("hq", "app", stamp, "installed", "/opt/app/etc/app.conf", "content")
    for problems in ([stored, patch], [stored, drift, patch]):
        lines = _text(problems, [], []).splitlines()
        assert max(len(line) for line in lines) <= 100
        assert lines[-4].split() == ["app", stamp, "stored", place]
        assert [lines[-3], lines[-1]] == [
            "  block 3 of DISTFILE.TED is damaged", f"  block 0 of PATCH-{before}/DISTFILE.TED is damaged",
        ]  # fmt: skip
    assert lines[2].split() == ["app", stamp, "installed", "/opt/app/etc/app.conf", "content"]


@pytest.mark.parametrize("damage", [b"no JSON", b'{"format":1}'])
def test_a_broken_record_is_told_and_the_sound_ones_are_reported_newest_first(
    hq: Fleet, run: Run, source: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    (source / "a.txt").write_text("two\n")
    hq.ted("hq", "build")
    stamps = sorted(path.parent.name for path in hq.working("hq").glob("hq/*/*/REVISION.TED"))
    assert len(stamps) == 4
    broken = sorted(hq.working("hq").glob("hq/app/*/REVISION.TED"))[0]
    broken.write_bytes(damage)
    code, rows = run("report", "revisions")
    assert (code, [row["revision"] for row in rows]) == (
        0, sorted((stamp for stamp in stamps if stamp != broken.parent.name), reverse=True),
    )  # fmt: skip
    assert run("report", "revisions", "--last", "2") == (0, rows[:2])
    main(["--config", str(hq.config("hq")), "report", "revisions"])
    told = capsys.readouterr().err
    assert told.startswith(f"ted: warning: app {broken.parent.name} of hq: {broken}: revision record")
    assert "ted build --force" in told
    for path in hq.working("hq").glob("hq/*/*/REVISION.TED"):
        path.write_bytes(damage)
    main(["--config", str(hq.config("hq")), "report", "revisions"])
    assert "no revision is kept here" not in capsys.readouterr().out


def test_what_is_named_twice_is_built_once(run: Run) -> None:
    code, told = run("build", "app", "other", "app")
    assert (code, [row["distribution"] for row in told["distributions"]]) == (0, ["app", "other"])


def test_what_cannot_be_trusted_is_no_damage(hq: Fleet, run: Run) -> None:
    for root in [*hq.config("hq").rglob("*root.json"), *hq.working("hq").rglob("root.json")]:
        root.unlink()
    for words in ((), ("--stored",)):
        code, data = run("verify", "app", *words)
        assert (code, data["error"]["type"]) == (25, "UntrustedDistributorError"), words
        assert "trust import" in data["error"]["hint"]


def test_types_are_listed_with_the_schema_of_their_options(run: Run) -> None:
    code, rows = run("types")
    (file,) = [row for row in rows if row["name"] == "file"]
    assert (code, file["available"], file["plugin"]) == (0, True, "ted")
    assert "targets" in file["options"]["properties"]
    assert run("types", "fiel")[0] == 60


def test_a_relay_extracts_only_what_it_subscribes_to_unless_forced(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    assert fleet.ted("s01", "extract") == {"changed": False, "distributions": []}
    (row,) = fleet.ted("s01", "extract", "app")["distributions"]
    assert (row["state"], row["changed"]) == ("skipped", False)
    assert "subscribe" in row["reason"]
    root = fleet.config("e01") / "trust" / "hq" / "root.json"
    held = root.read_bytes()
    root.unlink()
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "extract")
    assert caught.value.error["type"] == "UntrustedDistributorError"
    assert "ted trust import" in caught.value.error["hint"]
    root.write_bytes(held)
    assert fleet.ted("e01", "extract")["changed"]


def test_a_distributor_extracts_only_what_it_subscribes_to_unless_forced(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    dest = fleet.root / "hq" / "dest"
    fleet.hostvars["hq"]["ted_variables"] = {"DEST": str(dest)}
    fleet.install()
    revision = fleet.ted("hq", "build")["distributions"][0]["revision"]
    assert fleet.ted("hq", "extract") == {"changed": False, "distributions": []}
    for words in ((), ("--check",), ("--revision", revision)):
        (row,) = fleet.ted("hq", "extract", "app", *words)["distributions"]
        assert (row["state"], row["changed"]) == ("skipped", False)
        assert row["reason"] == "this node made it and does not subscribe to it"
    assert not dest.exists()
    assert fleet.ted("hq", "extract", "app", "--force")["changed"]
    assert same_trees(fleet.root / "source", dest / "app") == ""


@pytest.mark.parametrize("known", ["20260101T000000000000Z", "20260102T000000000000Z"])
def test_a_failed_step_leaves_on_record_what_was_installed_last(tmp_path: Path, known: str) -> None:
    """A newer revision that failed is not the installed one; one that failed when it was done again still is."""
    depot, (first, second) = Depot(tmp_path), ("20260101T000000000000Z", "20260102T000000000000Z")
    journal = Journal.at(depot.working.path, "s01")
    journal.report(DISTRIBUTOR, NAME, known, State.EXTRACTED)
    steps = [Step(revision, "", "file", "", state) for revision, state in ((first, EXTRACTED), (second, FAILED))]
    depot.host.states.save(Installed(DISTRIBUTOR, NAME, steps))
    report_failure(journal, depot.host, DISTRIBUTOR, NAME, second, TargetError("some of it was not done"))
    (row,) = journal.states()
    journal.close()
    assert (row.state, row.revision, row.installed) == (State.FAILED, second, known)


def test_a_node_knows_the_name_of_its_realm_by_the_certificate_of_its_authority(tmp_path: Path) -> None:
    authority = RealmAuthority(tmp_path / "authority")
    authority.create("shops.example")
    (tmp_path / "realm").mkdir()
    config = NodeConfig(node="s01", config_directory=tmp_path, working_directory=tmp_path / "var")
    assert host_of(config).variables.expand("%SERVER_DN%") == "s01"
    (tmp_path / "realm" / "ca.pem").write_bytes(authority.certificate())
    assert host_of(config).variables.expand("%SERVER_DN% of %TREE_NAME%") == "s01.shops.example of shops.example"
    (tmp_path / "realm" / "ca.pem").write_bytes(b"damaged")
    assert host_of(config).variables.expand("%SERVER_DN%") == "s01"


def test_one_of_a_thing_is_said_as_one() -> None:
    assert [counted(number, "attributes") for number in (1, 2)] == ["1 change of attributes", "2 changes of attributes"]
    assert [counted(1, name) for name in ("directories", "commands", "written")] == [
        "1 directory",
        "1 command",
        "1 written",
    ]
