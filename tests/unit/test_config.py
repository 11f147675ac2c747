"""A node's configuration: every mistake is named with its key."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from ted.agent.records import open_journal
from ted.config import _READERS, LIMITS, NodeConfig
from ted.errors import ConfigError
from ted.topology.model import OutputRates


def load(tmp_path: Path, text: str) -> NodeConfig:
    (tmp_path / "node.yml").write_text(text)
    return NodeConfig.load(tmp_path)


def test_units_are_those_of_the_inventory(tmp_path: Path) -> None:
    config = load(tmp_path, "node: e01\nretry_interval: 2m\nmin_free: 2MiB\noutput_rates: {high: 1MB}\n")
    assert (config.retry_interval, config.min_free, config.output_rates.high) == (120.0, 2 << 20, 1_000_000)


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    config = load(tmp_path, "node: e01\n")
    assert (config.port, str(config.working_directory), config.timeout) == (7465, "/var/lib/ted", 300)
    assert (config.retry_interval, config.retry_for, config.transport) == (120, 1800, "https")


@pytest.mark.parametrize(("written", "meant"), [("immediately", {"immediately": True}), ("never", {"never": True}),
                                                ("", None), ("{every: 6h}", {"every": "6h"})])  # fmt: skip
def test_a_schedule_of_one_word_is_that_of_the_inventory(tmp_path: Path, written: str, meant: object) -> None:
    config = load(tmp_path, f"node: e01\nextract_schedule: {written}\n")
    assert config.extract_schedule == meant
    assert config.extracts_immediately == (written == "immediately")


def test_a_node_takes_every_example_of_the_inventorys_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "inventory.md").read_text()
    for chapter in ("Every node", "Subscribers"):
        example = page.split(f"\n## {chapter}\n")[1].split("```yaml\n")[1].split("```")[0]
        assert load(tmp_path, "node: e01\n" + example.replace("ted_", "")).node == "e01"


def test_a_host_without_configuration_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.load(tmp_path)
    assert "install.yml" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("node: e01\nretry_intervall: 3\n", "retry_intervall"),
        ("node: ../etc\n", "node"),
        ("node: e01\ntimeout: 0\n", "timeout"),
        ("node: e01\nmin_free: lots\n", "min_free"),
        ("node: e01\nport: 70000\n", "port"),
        ("node: e01\nextract_schedule: imediately\n", "neither `immediately` nor `never`"),
        ("- a list\n", "mapping"),
        ("node: [\n", "node.yml"),
        ("port: 1\n", "node"),
        ("node: e01\nworking_directory: relative/x\n", "working_directory: 'relative/x' is not an absolute path"),
        ("", "must be a mapping of settings, holds nothing"),
        ("node: e01\nport: 0x" + "f" * 5000 + "\n", "port: a number of thousands of digits"),
        ("node: e01\nmin_free: " + "9" * 400 + "\n", "min_free"),
        ("node: e01\ntimeout: .inf\n", "timeout"),
        ("node: e01\ntimeout: .nan\n", "timeout"),
        ("node: e01\nport: 2026-99-99\n", "node.yml"),
        ("node: e01\nvariables: " + "[" * 5000 + "\n", "node.yml"),
        ("node: e01\naddress: [a, b]\n", "address"),
        ("node: e01\nvariables: {A: {__ansible_vault: x}}\n", "variables: 'A' must be a text, is dict"),
        ("node: e01\nvariables: {A: 0x" + "f" * 5000 + "}\n", "variables: A: a number of thousands of digits"),
        ("node: e01\ndatabase_url: {hunter2\n", "node.yml: line [23]: "),
        ("node: e01\n? [1, 2]\n: 3\n", "node.yml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)


def test_every_problem_is_named_and_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "node: e01\nretry_intervall: 3\nport: 70000\noutput_rates: {hihg: 1MB}\n1: 2\n")
    for named in ("retry_intervall: ", "port: 70000", "output_rates: 'hihg'", "1: is no setting"):
        assert named in caught.value.message
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "node: e01\nretry_intervall: 3\n")
    assert caught.value.hint == "did you mean retry_interval?"


def test_a_value_that_grows_when_it_is_shown_is_shown_in_part(tmp_path: Path) -> None:
    levels = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]\n" for level in range(1, 40))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "node: e01\nl0: &l0 x\n" + levels + "address: *l39\n")
    assert "address: [[" in caught.value.message
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("setting", ["variables: {A: [hunter2]}", "variables: hunter2", "variables: [hunter2]",
                                     "database_url: {password: hunter2}", 'variables: {A: "hunter2\\0"}',
                                     'database_url: "postgresql://x:hunter2@y/\\0"'])  # fmt: skip
def test_no_message_shows_a_secret(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"node: e01\n{setting}\n")
    assert "hunter2" not in caught.value.message
    assert setting.split(":", maxsplit=1)[0] in caught.value.message


def test_a_prefix_of_the_inventory_is_no_hindrance_to_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "node: e01\nted_port: 1\nretry_intervall: 3\n")
    assert "(did you mean port?)" in caught.value.message
    assert "(did you mean retry_interval?)" in caught.value.message


def test_what_is_blank_has_its_default(tmp_path: Path) -> None:
    assert load(tmp_path, "node: e01\nparent:\nport: ''\ninput_rate:\n") == NodeConfig(
        node="e01", config_directory=tmp_path
    )


def test_every_setting_has_its_reader_and_the_limits_are_settings() -> None:
    settings = {setting.name for setting in fields(NodeConfig)}
    assert set(_READERS) == settings
    assert set(LIMITS) < settings


def test_a_running_agent_takes_over_limits_and_nothing_else() -> None:
    config = NodeConfig(node="e01")
    assert config.is_but_for_limits(NodeConfig(node="e01", input_rate=1, output_rates=OutputRates(low=2)))
    assert not config.is_but_for_limits(NodeConfig(node="e01", input_rate=1, port=1))


def test_only_a_distributor_keeps_its_records_elsewhere(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    config = load(tmp_path, f"node: s01\nworking_directory: {tmp_path}/var\ndatabase_url: {url}\n")
    open_journal(config).close()
    assert not (tmp_path / "elsewhere.sqlite").exists()
    open_journal(replace(config, distributor=True)).close()
    assert (tmp_path / "elsewhere.sqlite").exists()
