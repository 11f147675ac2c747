"""The playbooks, run for real: seven of them, on agents with TLS, one after another as a person would."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)

EVERYBODY = {"hq", "s01", "s02", "e01"}
RECEIVERS = ("s01", "s02", "e01")


@pytest.fixture(scope="module")
def site(tree: Any) -> Any:
    """A tree after one run of site.yml."""
    tree.first = tree.play("site")
    return tree


def differences(one: Path, other: Path) -> str:
    """Return what rsync finds different: another program than ours."""
    command = ["rsync", "-n", "-c", "-a", "--delete", "--itemize-changes", f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def newest(tree: Any, distribution: str = "stdlib") -> str:
    """Return the newest revision that the Distributor has."""
    stamps = [row["revision"] for row in tree.ted("hq", "report", "revisions") if row["distribution"] == distribution]
    return max(stamps)


def installed(tree: Any, host: str) -> str:
    rows = tree.ted(host, "status", "stdlib", "--node", host)
    return next(row["revision"] for row in rows if row["state"] in ("extracted", "rolled_back"))


def links(play: Any, distribution: str) -> dict[tuple[str, str], float]:
    """Return the bytes over each link that the table at the end of a run tells of a distribution."""
    block = next(part for part in play.output.split("PLAY RECAP")[1].split("\n\n")
                 if part.startswith(f"{distribution} "))  # fmt: skip
    rows = [line.split() for line in block.splitlines()[3:]]
    return {(row[1], row[2]): float(row[3]) * {"B": 1, "kB": 1e3, "MB": 1e6}[row[4]] for row in rows}


def edit(tree: Any, text: str) -> None:
    (tree.stdlib / "json" / "__init__.py").write_text(f'"""{text}"""\n\nVALUE = 1\n')


def test_check_of_everything_before_the_first_run_changes_nothing(tree: Any) -> None:
    said = tree.play("site", "--check")
    assert not tree.run_directory.exists()
    assert all(count for count in said.changed.values()), said.output


def test_a_first_check_on_systemd_asks_it_for_no_unit_that_is_not_there(tree: Any) -> None:
    said = tree.play("install", "--check", "--diff", "-e", "ted_service=systemd")
    assert "CAP_SYS_PTRACE" in said.output
    assert all(count for count in said.changed.values()), said.output


def test_each_import_in_one_run_has_the_narrowing_it_asks_for(tree: Any) -> None:
    play = tree.root / "narrow.yml"
    find = f"- ansible.builtin.import_playbook: {REPOSITORY}/playbooks/nodes.yml\n"
    extract = f"- ansible.builtin.import_playbook: {REPOSITORY}/playbooks/extract.yml\n"
    play.write_text(f"{find}{extract}  vars: {{ted_distribution: nosuch}}\n")
    first, second = tree.play(play, "--check", fails=True).output.split("PLAY [Find the nodes of the tree]")[1:]
    assert "nosuch" not in first
    assert "No Distributor of this inventory has distribution nosuch;" in " ".join(second.split())
    said = tree.play("send", "--check", "-e", "ted_channel=nosuch", fails=True).output
    assert "No Distributor of this inventory sends a distribution on channel nosuch;" in " ".join(said.split())


def test_site_brings_the_distribution_to_every_node(site: Any) -> None:
    assert set(site.first.recap) == EVERYBODY
    for host in RECEIVERS:
        assert differences(site.stdlib, site.installed(host)) == ""
        assert (site.run_directory / host / "root" / "etc" / "motd.txt").exists()


def test_the_table_of_tiers_names_every_link(site: Any) -> None:
    table = site.first.output.split("PLAY RECAP")[1]
    for sender, receiver in (("hq", "s01"), ("hq", "s02"), ("s01", "e01")):
        assert any(line.split()[1:3] == [sender, receiver] for line in table.splitlines() if len(line.split()) > 3)


def test_a_second_run_changes_nothing(site: Any) -> None:
    assert site.play("site").changed == dict.fromkeys(EVERYBODY, 0)


def test_private_files_are_the_owners_alone(site: Any) -> None:
    for host in EVERYBODY:
        config = site.run_directory / host / "etc"
        for name in ("node.yml", "realm/node.key"):
            assert (config / name).stat().st_mode & 0o077 == 0
    assert (site.run_directory / "hq" / "etc" / "topology.json").stat().st_mode & 0o077 == 0


def test_check_foretells_an_update_step_by_step_and_changes_nothing(site: Any) -> None:
    before = newest(site)
    edit(site, "Foretold.")
    assert site.play("build", "--check").changed == {"hq": 1}
    assert newest(site) == before
    assert site.play("build").changed == {"hq": 1}
    assert newest(site) > before

    foretold = site.play("send", "--check")
    assert sum(foretold.changed.values()) == 1
    assert installed(site, "e01") == before
    assert not (site.run_directory / "e01" / "ted" / "hq" / "stdlib" / newest(site) / "DISTSTATUS.TED").exists()
    assert sum(site.play("send").changed.values()) == 1
    assert sum(site.play("send").changed.values()) == 0

    target = site.installed("e01") / "json" / "__init__.py"
    foretold = site.play("extract", "--check", "--diff", "-e", "ted_distribution=stdlib")
    assert foretold.changed == dict.fromkeys(RECEIVERS, 1) | {key: 0 for key in foretold.changed if key == "hq"}
    assert "json/__init__.py" in foretold.output
    assert "Foretold" not in target.read_text()
    site.play("extract")
    assert differences(site.stdlib, site.installed("e01")) == ""


def test_a_limit_that_names_one_subscriber_sends_and_installs_there_only(site: Any) -> None:
    before = newest(site)
    edit(site, "Limited.")
    site.play("build")
    hosts = site.inventory / "hosts.yml"
    without = hosts.read_text()
    data = yaml.safe_load(without)
    data["all"]["children"]["site_b"] = {"hosts": {"s02": {}, "database": {}}}  # a host that is none of ted's
    hosts.write_text(yaml.safe_dump(data))
    site.play("send", "--limit", "site_b")
    site.play("extract", "--limit", "site_b")
    assert "database" in site.play("send", "--limit", "database", fails=True).output
    hosts.write_text(without)
    assert installed(site, "s02") == newest(site) > before
    assert installed(site, "e01") == before
    site.play("send", "--limit", "e01,s01")
    site.play("extract")
    assert installed(site, "e01") == newest(site)


def test_rollback_restores_what_was_there(site: Any) -> None:
    before = installed(site, "e01")
    text = (site.installed("e01") / "json" / "__init__.py").read_text()
    edit(site, "Regretted.")
    for playbook in ("build", "send", "extract"):
        site.play(playbook)
    assert "Regretted" in (site.installed("e01") / "json" / "__init__.py").read_text()
    foretold = site.play("rollback", "--check", "-e", "ted_distribution=stdlib")
    assert all(foretold.changed[host] for host in RECEIVERS)
    assert "Regretted" in (site.installed("e01") / "json" / "__init__.py").read_text()
    site.play("rollback", "-e", "ted_distribution=stdlib")
    assert (site.installed("e01") / "json" / "__init__.py").read_text() == text
    assert installed(site, "e01") == before
    known = {row["node"]: (row["state"], row["revision"]) for row in site.ted("hq", "status", "stdlib")}
    assert known == dict.fromkeys(RECEIVERS, ("rolled_back", before)), "the Distributor knows it at once"


def test_rollback_without_a_name_says_what_is_missing(site: Any) -> None:
    assert "-e ted_distribution=NAME" in site.play("rollback", fails=True).output


def test_status_shows_who_has_what_and_the_tree(site: Any) -> None:
    said = site.play("status", "--limit", "e01")
    for name in ("stdlib", "motd", "s01", "s02", "e01"):
        assert name in said.output


def test_a_distribution_nobody_owns_is_refused_by_name(site: Any) -> None:
    for playbook in ("build", "send", "extract", "rollback"):
        assert "nosuch" in site.play(playbook, "-e", "ted_distribution=nosuch", fails=True).output
    assert "did you mean stdlib?" in site.play("rollback", "-e", "ted_distribution=stdlb", fails=True).output


def test_a_receiver_that_is_down_fails_the_send_by_name_and_hangs_nothing(site: Any) -> None:
    edit(site, "Late.")
    site.play("build")
    site.ted("e01", "agent", "stop")
    said = site.play("send", "-e", "ted_send_timeout=4", fails=True)
    assert "was not received by e01" in said.output
    assert "ted_allow_incomplete" in said.output
    failure = said.output.split("TASK [Send down the tree]")[1].split("PLAY RECAP")[0]
    assert "edges" not in failure
    assert len(failure.splitlines()) < 60, failure
    assert ("s01", "e01") in links(said, "stdlib"), "the table of tiers is of the whole send"
    assert said.output.count("  waiting for e01 (127.0.0.1:") == 1, said.output
    said = site.play("send", "-e", "ted_send_timeout=4", "-e", "ted_allow_incomplete=true")
    assert said.code == 0
    site.play("install", "--limit", "e01")
    site.play("send", "--limit", "e01")
    site.play("extract", "--limit", "e01")
    assert installed(site, "e01") == newest(site)


def test_a_host_that_is_down_holds_up_nobody_in_site_and_fails_the_run_at_its_end(site: Any) -> None:
    edit(site, "Others go on.")
    site.ted("e01", "agent", "stop")
    hosts = site.inventory / "hosts.yml"
    before = hosts.read_text()
    data = yaml.safe_load(before)
    data["all"]["children"] = {"first": {"hosts": {"e01": {}}}, **data["all"]["children"]}  # a run_once is its task
    (port,) = site.free_ports(1)
    down = {"ansible_connection": "ssh", "ansible_port": port, "ted_address": "127.0.0.1", "ansible_host": "127.0.0.1"}
    data["all"]["children"]["subscribers"]["hosts"]["e01"].update(down)
    hosts.write_text(yaml.safe_dump(data, sort_keys=False))
    try:
        said = site.play("site", "-e", "ted_send_timeout=6", fails=True)
        limited = site.play("site", "-e", "ted_send_timeout=6", "--limit", "s01,e01", fails=True)
    finally:
        hosts.write_text(before)
    assert said.recap["e01"]["unreachable"] == 1
    assert [installed(site, host) for host in ("s01", "s02")] == [newest(site)] * 2
    assert "Others go on." in (site.installed("s02") / "json" / "__init__.py").read_text()
    assert said.output.split("TASK [What is where]")[1].count("s02") > 1, "no status was shown"
    for run in (said, limited):
        last = run.output.split("TASK [")[-1]
        assert last.startswith("Everybody has what was sent")
        assert "stdlib was not received by e01" in last
    assert {host: counts["failed"] for host, counts in said.recap.items()} == dict.fromkeys(EVERYBODY, 0) | {"hq": 1}
    site.play("site")
    assert installed(site, "e01") == newest(site)


def test_a_distributor_that_is_down_holds_up_no_other_one(site: Any) -> None:
    edit(site, "The other Distributor is down.")
    hosts = site.inventory / "hosts.yml"
    before = hosts.read_text()
    data = yaml.safe_load(before)
    own, port = site.free_ports(2)
    down = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": port, "ted_port": own}
    data["all"]["children"]["distributors"]["hosts"]["hq2"] = down
    hosts.write_text(yaml.safe_dump(data))
    try:
        said = site.play("site", fails=True)
    finally:
        hosts.write_text(before)
    assert said.recap["hq2"]["unreachable"] == 1
    assert all(counts["failed"] == 0 for counts in said.recap.values()), said.output
    assert "TASK [What is where]" in said.output
    assert [installed(site, host) for host in RECEIVERS] == [newest(site)] * 3
    site.play("site")


def test_a_source_that_is_gone_holds_up_no_other_distribution_and_fails_the_run_at_its_end(site: Any) -> None:
    notice, held = site.inventory / "motd.txt", site.root / "held"
    notice.write_text("Another notice.\n")
    site.stdlib.rename(held)
    try:
        said = site.play("site", fails=True)
        alone = site.play("build", fails=True)
    finally:
        held.rename(site.stdlib)
    for host in RECEIVERS:
        assert (site.run_directory / host / "root" / "etc" / "motd.txt").read_text() == "Another notice.\n"
    tasks = said.output.split("TASK [")
    assert tasks[-1].startswith("Everything could be built")
    assert str(site.stdlib) in tasks[-1]
    assert said.recap["hq"]["failed"] == alone.recap["hq"]["failed"] == 1
    assert all(said.recap[host]["failed"] == 0 for host in RECEIVERS)


def test_refresh_takes_a_changed_inventory_over(site: Any) -> None:
    settings = site.inventory / "group_vars" / "all.yml"
    settings.write_text(settings.read_text().replace("ted_retry_interval: 1", "ted_retry_interval: 2"))
    foretold = site.play("refresh", "--check", "--diff")
    assert "-retry_interval: 1" in foretold.output
    assert "+retry_interval: 2" in foretold.output
    assert "retry_interval: 1\n" in (site.run_directory / "e01" / "etc" / "node.yml").read_text()
    site.play("refresh")
    assert "retry_interval: 2\n" in (site.run_directory / "e01" / "etc" / "node.yml").read_text()
    assert site.play("refresh").changed == dict.fromkeys(EVERYBODY, 0)
    before = site.ted("e01", "agent", "status")
    settings.write_text(settings.read_text() + "ted_output_rates: {low: 50MB}\n")
    said = site.play("refresh")
    assert said.changed == dict.fromkeys(EVERYBODY, 1)  # node.yml, and on the Distributor the tree with it
    assert site.ted("e01", "agent", "status") == before, "a changed limit needs no new start"


def test_a_check_of_site_foretells_what_a_changed_inventory_leads_to(site: Any) -> None:
    settings = site.inventory / "group_vars" / "distributors.yml"
    owned = yaml.safe_load(settings.read_text())
    notes = {"targets": [{"path": "%DEST_VOLUME%/notes", "from": [str(settings.parents[1] / "motd.txt")]}]}
    owned["ted_distributions"]["notes"] = {"type": "file", "channels": ["notices"], "options": notes}
    settings.write_text(yaml.safe_dump(owned))
    edit(site, "Foretold by one check.")
    before, listed = newest(site), sorted(site.run_directory.rglob("*.TED"))
    foretold = site.play("site", "--check")
    assert (newest(site), sorted(site.run_directory.rglob("*.TED"))) == (before, listed)
    done = site.play("site")
    assert done.changed == foretold.changed
    assert all(foretold.changed.values()), foretold.output
    assert before not in foretold.output, "what is now stands where a check says what would be"
    for host in RECEIVERS:
        assert f"{host}: notes, stdlib" in foretold.output
    most, moved = (links(play, "stdlib") for play in (foretold, done))
    assert most.keys() == moved.keys() == {("hq", "s01"), ("hq", "s02"), ("s01", "e01")}
    assert all(0 < moved[link] <= most[link] < 10_000 for link in moved), (most, moved)
    assert links(foretold, "notes").keys() == most.keys()
    assert "stdlib a new revision on " in foretold.output
    assert foretold.output.count("would be sent") == 2 * len(RECEIVERS)
    for host in RECEIVERS:
        assert (site.run_directory / host / "root" / "notes" / "motd.txt").exists()


def test_a_mistake_in_the_inventory_is_refused_before_it_reaches_anybody(site: Any) -> None:
    everybody = site.inventory / "group_vars" / "all.yml"
    before, nodes = everybody.read_text(), list(site.run_directory.glob("*/etc/node.yml"))
    everybody.write_text(before.replace("ted_retry_interval: 2", "ted_retry_interval: 3"))
    kept = [node.read_bytes() for node in nodes]
    settings = site.inventory / "group_vars" / "distributors.yml"
    good, held = settings.read_text(), (site.run_directory / "hq" / "etc" / "topology.json").read_bytes()
    settings.write_text(good.replace("priority: high", "priority: highest"))
    try:
        said = site.play("refresh", fails=True)
    finally:
        settings.write_text(good)
        everybody.write_text(before)
    assert [node.read_bytes() for node in nodes] == kept
    assert {node.parts[-3] for node in nodes} == EVERYBODY
    assert "highest" in said.output
    assert (site.run_directory / "hq" / "etc" / "topology.json").read_bytes() == held


def test_a_doubt_about_the_inventory_is_a_warning_said_once(site: Any) -> None:
    settings = site.inventory / "group_vars" / "distributors.yml"
    good = settings.read_text()
    settings.write_text(good.replace("%DEST_VOLUME%/etc", "%DEST_VOLUME%/%SITE%"))
    try:
        said = " ".join(site.play("refresh", "--check").output.split())
    finally:
        settings.write_text(good)
    assert said.count("%SITE% is not defined") == 1, said
    assert "WARNING]: e01, s01, s02: ted_variables: %SITE% is not defined" in said


def test_a_database_that_ted_does_not_know_is_refused_without_its_password(site: Any) -> None:
    settings = site.inventory / "group_vars" / "distributors.yml"
    good, before = settings.read_text(), site.ted("hq", "agent", "status")
    settings.write_text(good + "ted_database_url: mysql://ted:hush@db/ted\n")
    try:
        said = site.play("refresh", fails=True).output
    finally:
        settings.write_text(good)
    assert "ted_database_url: mysql: is not the URL of a database that ted knows" in " ".join(said.split())
    assert "hush" not in said
    assert site.ted("hq", "agent", "status") == before


def test_a_limit_that_the_installed_inventory_lacks_says_how_it_gets_there(site: Any) -> None:
    hosts = site.inventory / "hosts.yml"
    before = hosts.read_text()
    data = yaml.safe_load(before)
    data["all"]["children"]["subscribers"]["hosts"]["e09"] = {"ted_port": 7465, "ted_parent": "s01"}
    hosts.write_text(yaml.safe_dump(data))
    try:
        said = " ".join(site.play("send", "--limit", "e09", fails=True).output.split())
    finally:
        hosts.write_text(before)
    assert "the inventory installed on hq does not know e09 (yet)" in said
    assert "ansible-playbook playbooks/refresh.yml --limit hq" in said


def test_uninstall_ends_the_agents_and_leaves_what_was_installed(site: Any) -> None:
    site.play("uninstall", "-e", "ted_purge=true")
    for host in EVERYBODY:
        assert not (site.run_directory / host / "etc").exists()
        assert not (site.run_directory / host / "ted").exists()
    assert (site.installed("e01") / "this.py").exists()
    assert not (site.run_directory / "hq").exists(), "an empty directory was left"
    again = site.play("uninstall", "-e", "ted_purge=true")
    assert again.changed == dict.fromkeys(EVERYBODY, 0)


def test_uninstall_removes_no_directory_that_is_not_teds(site: Any) -> None:
    others = site.root / "others"
    for name in ("venv", "etc", "work"):
        (others / name).mkdir(parents=True)
        (others / name / "precious").touch()
    (others / "venv" / "pyvenv.cfg").touch()
    words = {"venv": "venv", "config_directory": "etc", "working_directory": "work"}
    named = [word for key, name in words.items() for word in ("-e", f"ted_{key}={others}/{name}")]
    site.play("uninstall", "--limit", "e01", "-e", "ted_purge=true", "-e", "ted_package=ted", *named)
    assert sorted(path.parent.name for path in others.glob("*/precious")) == ["etc", "venv", "work"]
