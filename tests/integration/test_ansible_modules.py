"""Every module four times: check, apply, check, apply. Then another program is asked for the truth."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOUR = """
      check_mode: "{{ item }}"
      loop: [true, false, true, false]
      register: done
    - ansible.builtin.assert:
        that: done.results | map(attribute='changed') == [true, true, false, false]
"""
HEAD = """
- hosts: {host}
  gather_facts: false
  module_defaults:
    group/ted.distribution.ted:
      config: "{{{{ ted_config_directory }}}}"
      executable: "{{{{ ted_executable }}}}"
  tasks:
"""


class Bench:
    """A Distributor and a Subscriber that are installed, and plays of a few lines on them."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.number = 0

    def run(self, host: str, tasks: str, *words: str, fails: bool = False) -> Any:
        """Run tasks (indented by four) on a host."""
        self.number += 1
        path: Path = self.tree.root / f"play{self.number}.yml"
        path.write_text(HEAD.format(host=host) + tasks)
        return self.tree.play(path, *words, fails=fails)

    def four_times(self, host: str, task: str) -> Any:
        """Run one module check, apply, check, apply; only the first two may report a change."""
        return self.run(host, f"    - {task}{FOUR}")

    def held(self, host: str) -> set[str]:
        """Revisions of the library that lie complete on a host, as the file system says."""
        where = self.tree.run_directory / host / "ted" / "hq" / "stdlib"
        marker = "REVISION.TED" if host == "hq" else "DISTSTATUS.TED"
        return {path.parent.name for path in where.glob(f"*/{marker}")}

    def edit(self, text: str) -> None:
        (self.tree.stdlib / "json" / "__init__.py").write_text(f"# {text}\n")

    def installed(self) -> str:
        return (self.tree.installed("s01") / "json" / "__init__.py").read_text()


@pytest.fixture(scope="module")
def bench(tree: Any) -> Bench:
    """A Distributor and its parent Subscriber after install.yml."""
    tree.play("install", "--limit", "hq,s01")
    return Bench(tree)


def test_build_makes_one_revision(bench: Bench) -> None:
    bench.edit("first")
    bench.four_times("hq", "ted.distribution.build: {name: stdlib}")
    assert len(bench.held("hq")) == 1


def test_build_returns_what_it_made(bench: Bench) -> None:
    bench.run(
        "hq",
        """
    - ted.distribution.build: {name: [stdlib]}
      register: built
    - ansible.builtin.assert:
        that:
          - built.revision is match('^\\d{8}T\\d{12}Z$')
          - built.distributions[0].files > 40
          - built.bytes == 0
          - not built.changed
""",
    )


def test_send_brings_it_to_the_subscriber(bench: Bench) -> None:
    bench.four_times("hq", "ted.distribution.send: {name: stdlib, limit: [s01], timeout: 60}")
    assert bench.held("s01") == bench.held("hq")


def test_a_send_can_be_started_and_followed_by_another_task(bench: Bench) -> None:
    bench.edit("second")
    bench.run(
        "hq",
        """
    - ted.distribution.build: {name: stdlib}
    - ted.distribution.send: {name: stdlib, limit: [s01], wait: false}
      register: started
    - ted.distribution.send:
        watch: "{{ started.sends | map(attribute='send') }}"
        timeout: 60
      register: followed
    - ansible.builtin.assert:
        that:
          - started.changed
          - followed.sends[0].done
          - followed.incomplete == {}
          - followed.sends[0].states.s01 == 'received'
""",
    )
    assert bench.held("s01") == bench.held("hq")


def test_extract_installs_the_newest_revision(bench: Bench) -> None:
    first = min(bench.held("s01"))
    bench.run("s01", f"    - ted.distribution.extract: {{name: stdlib, revision: {first}}}\n")
    assert bench.installed() == "# first\n"
    bench.four_times("s01", "ted.distribution.extract: {name: stdlib}")
    assert bench.installed() == "# second\n"


def test_extract_with_force_repairs_what_somebody_changed(bench: Bench) -> None:
    (bench.tree.installed("s01") / "json" / "__init__.py").write_text("vandalised")
    bench.four_times("s01", "ted.distribution.extract: {name: stdlib, force: true}")
    assert bench.installed() == "# second\n"


def test_rollback_goes_to_the_revision_named(bench: Bench) -> None:
    first = min(bench.held("s01"))
    bench.four_times("s01", f"ted.distribution.rollback: {{name: stdlib, revision: {first}}}")
    assert bench.installed() == "# first\n"


def test_trust_is_taken_away_and_given(bench: Bench) -> None:
    root = bench.tree.run_directory / "s01" / "etc" / "trust" / "hq" / "root.json"
    text = root.read_text()
    bench.four_times("s01", "ted.distribution.trust: {distributor: hq, state: absent}")
    assert not root.exists()
    bench.run("s01", "    - ted.distribution.trust: {distributor: hq}\n", fails=True)
    (bench.tree.root / "root.json").write_text(text)
    lookup = f"{{{{ lookup('ansible.builtin.file', '{bench.tree.root}/root.json', rstrip=false) }}}}"
    bench.four_times("s01", f'ted.distribution.trust: {{distributor: hq, root: "{lookup}"}}')
    assert root.read_text() == text


def test_a_root_that_is_none_is_refused_with_the_reason(bench: Bench) -> None:
    said = bench.run("s01", "    - ted.distribution.trust: {distributor: hq, root: 'no root'}\n", fails=True)
    assert "TrustError" in said.output


def test_agent_is_stopped_and_started(bench: Bench) -> None:
    before = agent_of(bench)
    assert before is not None
    bench.four_times("s01", "ted.distribution.agent: {state: stopped}")
    assert agent_of(bench) is None
    bench.four_times("s01", "ted.distribution.agent: {state: started}")
    assert agent_of(bench) not in (None, before)


def test_agent_with_older_settings_is_started_anew_and_once(bench: Bench) -> None:
    settings = bench.tree.run_directory / "s01" / "etc" / "node.yml"
    settings.write_text(settings.read_text().replace("retry_interval: 1\n", "retry_interval: 2\n"))
    bench.four_times("s01", "ted.distribution.agent: {state: started, fresh: true}")


def agent_of(bench: Bench) -> str | None:
    """Return the process of the Subscriber's agent, as the system says."""
    pattern = f"--config {bench.tree.run_directory}/s01/etc agent$"
    done = subprocess.run(["pgrep", "-f", "--", pattern], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def test_mirror_is_filled_checked_and_taken_from(bench: Bench) -> None:
    mirror = bench.tree.root / "mirror"
    bench.edit("third")
    bench.run("hq", "    - ted.distribution.build: {name: stdlib}\n")
    bench.four_times("hq", f"ted.distribution.mirror: {{url: {mirror}, name: stdlib}}")
    bench.run("s01", f"    - ted.distribution.mirror: {{url: {mirror}, state: checked}}\n")
    bench.four_times("s01", f"ted.distribution.mirror: {{url: {mirror}, state: pulled, name: stdlib}}")
    assert max(bench.held("s01")) == max(bench.held("hq"))


def test_receive_asks_the_parent(bench: Bench) -> None:
    bench.run(
        "s01",
        """
    - ted.distribution.receive:
      register: received
    - ansible.builtin.assert:
        that:
          - not received.changed
          - received.distributions is sequence
""",
    )


def test_purge_removes_what_a_dead_build_left(bench: Bench) -> None:
    left = bench.tree.run_directory / "hq" / "ted" / "hq" / "stdlib" / "20200101T000000000000Z_TEMP"
    left.mkdir()
    (left / "DISTFILE.TED").write_bytes(b"half")
    bench.four_times("hq", "ted.distribution.purge:")
    assert not left.exists()


def test_realm_issues_a_certificate_once(bench: Bench) -> None:
    config = bench.tree.root / "x01"
    command = ["ted", "--config", str(config), "realm", "request", "x01", "--address", "192.0.2.9"]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=bench.tree.environment)
    csr = json.dumps((config / "realm" / "node.csr").read_text())
    bench.run(
        "hq",
        f"""
    - ted.distribution.realm:
        requests: {{x01: {{request: {csr}, renew: true, authority: ''}}}}
      check_mode: "{{{{ item }}}}"
      loop: [true, false, true, false]
      register: done
    - ansible.builtin.assert:
        that:
          - done.results | map(attribute='changed') == [true, true, false, false]
          - done.results[3].certificates.x01 is match('-----BEGIN CERTIFICATE-----')
    - ansible.builtin.copy:
        content: "{{{{ done.results[3].certificates.x01 }}}}"
        dest: {config}/node.pem
        mode: "0644"
""",
    )
    command = ["openssl", "x509", "-in", str(config / "node.pem"), "-noout", "-ext", "subjectAltName"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "URI:ted:node:x01" in shown
    assert "192.0.2.9" in shown


def test_node_writes_settings_and_asks_for_a_certificate_once(bench: Bench) -> None:
    config = bench.tree.root / "y01"
    bench.four_times(
        "s01",
        f"""ted.distribution.node:
        name: y01
        config: {config}
        working_directory: {config}/work
        settings: "node: y01\\nworking_directory: {config}/work\\ndatabase_url: postgresql://u:hush@db/ted\\n"
        addresses: [192.0.2.10]""",
    )
    assert (config / "node.yml").stat().st_mode & 0o777 == 0o600
    assert "node: y01" in (config / "node.yml").read_text()
    assert (config / "realm" / "node.key").exists()


def test_passwords_in_settings_are_shown_nowhere(bench: Bench) -> None:
    task = f"""
    - ted.distribution.node:
        name: z01
        config: {bench.tree.root}/z01
        working_directory: {bench.tree.root}/z01/work
        settings: "node: z01\\nretry_for: 17\\ndatabase_url: postgresql://u:hush@db/ted\\n"
"""
    said = bench.run("s01", task.replace("hush", "{{ 'hu' ~ 'sh' }}"), "-vvv", "--diff")
    assert "retry_for: 17" in said.output
    assert "hush" not in said.output


def test_the_read_only_modules_tell_what_is_there(bench: Bench) -> None:
    bench.run(
        "hq",
        """
    - ted.distribution.distribution_info: {name: stdlib, node: [s01]}
      register: distributions
    - ted.distribution.node_info:
      register: node
    - ted.distribution.report_info: {name: sends}
      register: sends
    - ansible.builtin.assert:
        that:
          - distributions.status | map(attribute='node') | unique == ['s01']
          - distributions.status | map(attribute='distribution') | unique == ['stdlib']
          - node.agent.running
          - node.version is match('\\d')
          - "'file' in node.types | map(attribute='name')"
          - node.trust | map(attribute='distributor') == ['hq']
          - sends.report | length > 0
""",
        "--check",
    )


def test_an_error_of_ted_names_what_and_what_now(bench: Bench) -> None:
    said = bench.run("hq", "    - ted.distribution.build: {name: nosuch}\n", fails=True)
    assert "nosuch" in said.output
    assert "rc: 13" in said.output
    assert "error: UnknownNameError" in said.output


def test_a_ted_that_hangs_is_ended_and_named(bench: Bench) -> None:
    hangs = bench.tree.root / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 300\n")
    hangs.chmod(0o755)
    said = bench.run("hq", f"    - ted.distribution.build: {{executable: {hangs}, timeout: 1}}\n", fails=True)
    assert "took longer than 1 s and was ended" in said.output


def test_check_with_diff_shows_what_would_be_built(bench: Bench) -> None:
    bench.edit("fourth")
    newest = max(bench.held("hq"))
    said = bench.run("hq", "    - ted.distribution.build: {name: stdlib}\n", "--check", "--diff")
    assert f"-revision: {newest}" in said.output
    assert "+revision: a new one" in said.output
    assert "+files: " in said.output
    assert max(bench.held("hq")) == newest


def test_what_a_build_warns_of_is_a_warning_of_the_task(bench: Bench) -> None:
    newest = max(bench.held("hq"))
    record = bench.tree.run_directory / "hq" / "ted" / "hq" / "stdlib" / newest / "REVISION.TED"
    signed = record.read_bytes()
    record.write_bytes(signed.replace(b'"priority":"', b'"priority":"x'))
    try:
        said = bench.run("hq", "    - ted.distribution.build: {name: stdlib}\n")
    finally:
        record.write_bytes(signed)
    assert f"stdlib: the record of revision {newest} is not what was signed" in " ".join(said.output.split())
