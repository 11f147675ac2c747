"""From inventory data to the model: every variable, every default, every mistake named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ted.errors import ConfigError, InventoryError
from ted.topology import OutputRates, Schedule, Topology, compact, examine_inventory, parse_inventory
from ted.topology.model import Node, SubscriberSettings

Data = dict[str, Any]


def small(**hostvars: dict[str, Any]) -> Data:
    """hq sends to s01 and s02 on channel antivirus; keyword arguments are variables of a host."""
    variables: Data = {"hq": {"ted_channels": {"antivirus": {}}}, "s01": {}, "s02": {}, "x01": {}}
    for host, found in hostvars.items():
        variables.setdefault(host, {}).update(found)
    return {
        "_meta": {"hostvars": variables},
        "distributors": {"hosts": ["hq"]},
        "subscribers": {"hosts": ["s01", "s02"]},
        "antivirus": {"children": ["subscribers"]},
    }


def problems(data: Data) -> list[tuple[str | None, str | None, str, str | None]]:
    found = examine_inventory(data).problems
    return [(problem.host, problem.variable, problem.message, problem.hint) for problem in found]


def warnings(data: Data) -> list[str]:
    found = examine_inventory(data)
    assert found.problems == ()
    return [str(warning) for warning in found.warnings]


def node(name: str, **variables: Any) -> Node:
    return parse_inventory(small(**{name: variables})).nodes[name]


# The model.


def test_a_node_without_variables_has_the_defaults_of_the_contract() -> None:
    assert node("s01") == Node(
        name="s01",
        address="s01",
        port=7465,
        working_directory="/var/lib/ted",
        config_directory="/etc/ted",
        input_rate_bytes_s=None,
        output_rates=OutputRates(None, None, None),
        max_concurrent=None,
        timeout_s=300.0,
        min_free_bytes=None,
        retry_interval_s=120.0,
        retry_for_s=1800.0,
        message_levels={},
        log_max_age_s=None,
        transport="https",
        distributor=None,
        subscriber=SubscriberSettings(None, None, {}, (), (), "unreachable", "listed"),
    )


def test_every_variable_of_a_node_is_read() -> None:
    found = node(
        "s01",
        ted_address="[2001:db8::1]", ted_port="7000", ted_working_directory="/srv/ted/",
        ted_config_directory="/opt/etc",
        ted_input_rate="256KiB", ted_output_rates={"high": "2MB", "low": 1000, "medium": None}, ted_max_concurrent=3,
        ted_timeout="2m", ted_min_free="1GiB", ted_retry_interval=5, ted_retry_for="1h",
        ted_message_levels={"log": 6, "mail": "1"}, ted_log_max_age="7d", ted_transport="http",
        ted_parent="s02", ted_extract_schedule="immediately", ted_variables={"VOLUME": "/data", "COUNT": 3, "ON": True},
        ted_inactive_channels=["antivirus"], ted_fallbacks=["https://mirror.example/ted", "/mnt/usb"],
        ted_fallback_when="stale", ted_source_order="latency",
    )  # fmt: skip
    assert found == Node(
        name="s01", address="2001:db8::1", port=7000, working_directory="/srv/ted", config_directory="/opt/etc",
        input_rate_bytes_s=262144, output_rates=OutputRates(high=2_000_000, low=1000), max_concurrent=3,
        timeout_s=120.0, min_free_bytes=1 << 30, retry_interval_s=5.0, retry_for_s=3600.0,
        message_levels={"log": 6, "mail": 1}, log_max_age_s=604800.0, transport="http",
        subscriber=SubscriberSettings(
            parent="s02", extract_schedule=Schedule("immediately"),
            variables={"VOLUME": "/data", "COUNT": "3", "ON": "true"}, inactive_channels=("antivirus",),
            fallbacks=("https://mirror.example/ted", "/mnt/usb"), fallback_when="stale", source_order="latency",
        ),
    )  # fmt: skip


def test_every_variable_of_a_distributor_is_read() -> None:
    settings = node(
        "hq",
        ted_routing_hierarchy=[{"s01": ["s02"]}], ted_unlisted_parent="direct", ted_refresh_schedule={"daily": "01:00"},
        ted_database_url="postgresql://db/ted",
        ted_distributions={
            "dat": {
                "type": "http", "channels": ["antivirus"], "priority": "high", "active": False, "max_revisions": None,
                "encrypt": True, "build_schedule": {"every": "6h"}, "send_after_build": True,
                "platforms": [{"os_family": "Debian"}], "on_failure": "leave", "verify": ["/t/test_dat.py"],
                "open_packages": "all",
                "options": {"url": "x"}, "description": "Virus definitions",
            },
            "plain": {"type": "file"},
        },
    ).distributor  # fmt: skip
    assert settings is not None
    assert (settings.unlisted_parent, settings.database_url) == ("direct", "postgresql://db/ted")
    assert settings.refresh_schedule is not None
    assert [item.name for item in settings.routing_hierarchy] == ["s01"]
    assert [item.name for item in settings.routing_hierarchy[0].children] == ["s02"]
    dat, plain = settings.distributions["dat"], settings.distributions["plain"]
    assert (dat.type, dat.channels, dat.priority, dat.active, dat.max_revisions) == (
        "http", ("antivirus",), "high", False, None,
    )  # fmt: skip
    assert (dat.encrypt, dat.build_schedule, dat.send_after_build) == (True, Schedule("every", every_s=21600.0), True)
    assert (dat.platforms, dat.on_failure, dat.verify) == (({"os_family": "Debian"},), "leave", ("/t/test_dat.py",))
    assert (dat.options, dat.description) == ({"url": "x"}, "Virus definitions")
    assert (plain.priority, plain.active, plain.max_revisions, plain.encrypt) == ("medium", True, 10, False)
    assert (dat.open_packages, plain.open_packages) == ("all", "fast")
    assert (plain.on_failure, plain.channels, plain.options) == ("rollback", (), {})


def test_the_address_is_ted_address_else_ansible_host_else_the_name() -> None:
    assert node("s01").address == "s01"
    assert node("s01", ansible_host="10.0.0.1").address == "10.0.0.1"
    assert node("s01", ansible_host="10.0.0.1", ted_address="s01.lan").address == "s01.lan"


def test_hosts_of_nested_groups_are_members_of_a_channel() -> None:
    data = small()
    data["subscribers"] = {"children": ["north"]}
    data["north"] = {"children": ["shops"], "hosts": ["s01"]}
    data["shops"] = {"hosts": ["s02"]}
    topology = parse_inventory(data)
    assert topology.subscribers == topology.channels["antivirus"].members == ("s01", "s02")


def test_hosts_of_a_channel_are_subscribers_even_outside_that_group() -> None:
    data = small()
    data["antivirus"]["hosts"] = ["s03", "x01"]
    data["external_subscribers"] = {"hosts": ["x01"]}
    data["_meta"]["hostvars"]["x01"] = {"ted_parent": "s01"}
    topology = parse_inventory(data)
    assert topology.subscribers == ("s01", "s02", "s03")
    assert topology.external_subscribers == ("x01",)
    assert topology.channels["antivirus"].members == ("s01", "s02", "s03", "x01")


def test_a_host_may_be_distributor_and_subscriber() -> None:
    data = small(hq={"ted_parent": "s01"})
    data["subscribers"]["hosts"].append("hq")
    hq = parse_inventory(data).nodes["hq"]
    assert hq.distributor is not None
    assert hq.subscriber is not None
    assert hq.subscriber.parent == "s01"


def test_a_channel_of_an_empty_group_is_known() -> None:
    data = small(hq={"ted_channels": {"antivirus": {}, "later": {}}})
    data["all"] = {"children": ["ungrouped", "later"]}  # Ansible prints no entry for an empty group
    assert parse_inventory(data).channels["later"].members == ()


def test_group_variables_of_an_export_count_inner_over_outer_and_host_over_group() -> None:
    data = small(s02={"ted_port": 3})
    data["all"] = {"children": ["subscribers"], "vars": {"ted_port": 1, "ted_timeout": 9}}
    data["subscribers"]["vars"] = {"ted_port": 2}
    nodes = parse_inventory(data).nodes
    assert [nodes[name].port for name in ("hq", "s01", "s02")] == [1, 2, 3]
    assert nodes["s01"].timeout_s == 9.0


def test_blank_means_the_default() -> None:
    assert node("s01", ted_input_rate="", ted_port=None, ted_output_rates={"high": None}) == node("s01")


def test_an_empty_inventory_is_an_empty_topology() -> None:
    assert parse_inventory({}) == parse_inventory({"_meta": {"hostvars": {}}}) == Topology()


# Problems.


@pytest.mark.parametrize(
    ("host", "variable", "value", "said"),
    [
        ("s01", "ted_address", "10.0.0.300", "neither a host name nor an IP address"),
        ("s01", "ted_address", "a b", "neither a host name nor an IP address"),
        ("s01", "ted_address", "s01:7465", "neither a host name nor an IP address"),
        ("s01", "ted_port", 0, "not a whole number from 1 to 65535"),
        ("s01", "ted_port", "https", "not a whole number"),
        ("s01", "ted_port", True, "not a whole number"),
        ("s01", "ted_working_directory", "ted", "not an absolute path"),
        ("s01", "ted_config_directory", "/etc/../ted", "not an absolute path"),
        ("s01", "ted_input_rate", "fast", "not a size"),
        ("s01", "ted_input_rate", 0, "never send"),
        ("s01", "ted_output_rates", {"hihg": 1}, "no priority"),
        ("s01", "ted_output_rates", {"high": "x"}, "high: "),
        ("s01", "ted_output_rates", 5, "not a mapping"),
        ("s01", "ted_max_concurrent", 0, "not a whole number"),
        ("s01", "ted_timeout", "-1", "not a duration"),
        ("s01", "ted_timeout", 0, "no time at all"),
        ("s01", "ted_min_free", "10%", "not a size"),
        ("s01", "ted_retry_interval", [], "not a duration"),
        ("s01", "ted_retry_for", "long", "not a duration"),
        ("s01", "ted_message_levels", {"log": 7}, "log: 7 is not a whole number from 0 to 6"),
        ("s01", "ted_log_max_age", "old", "not a duration"),
        ("s01", "ted_transport", "ftp", "none of https, http"),
        ("s01", "ted_parent", 7, "not a name"),
        ("s01", "ted_extract_schedule", {"dialy": "02:00"}, "exactly one of"),
        ("s01", "ted_variables", {"A B": 1}, "between % signs"),
        ("s01", "ted_variables", {"a": 1, "A": 2}, "same variable"),
        ("s01", "ted_variables", {"a": [1]}, "a: [1] is not a text"),
        ("s01", "ted_inactive_channels", "antivirus", "not a list"),
        ("s01", "ted_inactive_channels", ["antvirus"], "channel antvirus is not in ted_channels"),
        ("s01", "ted_fallbacks", ["mirror"], "not a URL"),
        ("s01", "ted_fallback_when", "always", "none of unreachable, stale"),
        ("s01", "ted_source_order", "random", "none of listed, latency, subnet"),
        ("hq", "ted_unlisted_parent", "via-parent", "none of via_parent, direct"),
        ("hq", "ted_refresh_schedule", {"every": 60}, "more often than every 180 s"),
        ("hq", "ted_database_url", 5, "not a text"),
        ("hq", "ted_database_url", "mysql://ted:hush@db/ted", "mysql: is not the URL of a database that ted knows"),
        ("hq", "ted_database_url", "sqlite://records.sqlite", "sqlite: is not"),
        ("hq", "ted_database_url", "/var/lib/hush.sqlite", "is not the URL of a database"),
        ("hq", "ted_routing_hierarchy", "s01", "not a list"),
        ("hq", "ted_routing_hierarchy", [{"s01": "s02"}], "not a list"),
        ("hq", "ted_routing_hierarchy", [{"s01": [], "s02": []}], "neither a name nor a mapping of one name"),
        ("hq", "ted_routing_hierarchy", [1], "neither a name nor a mapping"),
        ("hq", "ted_distributions", [], "not a mapping"),
        ("hq", "ted_channels", [], "not a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_a_problem_of_that_host_and_variable(host: str, variable: str, value: Any, said: str) -> None:
    found = problems(small(**{host: {variable: value}}))
    assert [(where, name) for where, name, *_ in found] == [(host, variable)]
    assert said in found[0][2]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("type", None, "has no type"),
        ("type", "../x", "not a name"),
        ("channels", "antivirus", "not a list"),
        ("channels", ["antvirus"], "channel antvirus is not in ted_channels"),
        ("priority", "urgent", "none of high, medium, low"),
        ("active", "perhaps", "neither true nor false"),
        ("max_revisions", 0, "not a whole number"),
        ("encrypt", 1, "neither true nor false"),
        ("build_schedule", {"every": "x"}, "not a duration"),
        ("platforms", "Debian", "not a list of facts"),
        ("on_failure", "retry", "none of rollback, leave"),
        ("open_packages", True, "none of none, fast, all"),
        ("verify", "test.py", "not a list"),
        ("options", [], "not a mapping"),
        ("description", 5, "not a text"),
        ("prioritty", "high", "is unknown here"),
    ],
)
def test_a_wrong_field_of_a_distribution_is_named_with_dots(field: str, value: Any, said: str) -> None:
    found = problems(small(hq={"ted_distributions": {"dat": {"type": "file", field: value}}}))
    assert [(host, variable) for host, variable, *_ in found] == [("hq", f"ted_distributions.dat.{field}")]
    assert said in found[0][2]


def test_an_unknown_variable_is_a_problem_with_a_suggestion() -> None:
    [(host, variable, _, hint)] = problems(small(s01={"ted_prot": 7465}))
    assert (host, variable, hint) == ("s01", "ted_prot", "did you mean ted_port?")
    [(host, *_)] = problems(small(x01={"ted_parnet": "s01"}))  # even on a host that takes no part
    assert host == "x01"


def test_every_problem_is_reported_at_once() -> None:
    data = small(
        hq={"ted_unlisted_parent": "x", "ted_distributions": {"a": {}, "b": {"type": "file", "priority": "x"}}},
        s01={"ted_port": 0, "ted_transport": "x", "ted_parent": "nobody"},
        s02={"ted_tiemout": 1},
    )
    with pytest.raises(InventoryError) as caught:
        parse_inventory(data)
    assert sorted((item["host"], item["variable"]) for item in caught.value.problems) == [
        ("hq", "ted_distributions.a.type"),
        ("hq", "ted_distributions.b.priority"),
        ("hq", "ted_unlisted_parent"),
        ("s01", "ted_parent"),
        ("s01", "ted_port"),
        ("s01", "ted_transport"),
        ("s02", "ted_tiemout"),
    ]
    assert caught.value.exit_code == 11
    assert "7 problems" in caught.value.message
    assert "s02: ted_tiemout" in caught.value.message
    assert set(caught.value.problems[0]) == {"host", "variable", "message", "hint"}


def test_a_channel_that_is_no_group_is_a_problem() -> None:
    [(host, variable, message, hint)] = problems(small(hq={"ted_channels": {"antivirus": {}, "antivirsu": {}}}))
    assert (host, variable, hint) == ("hq", "ted_channels.antivirsu", "did you mean antivirus?")
    assert "no group" in message


def test_two_hosts_that_differ_about_a_channel_are_a_problem() -> None:
    [(host, variable, message, _)] = problems(small(s01={"ted_channels": {"antivirus": {"active": False}}}))
    assert (host, variable) == ("s01", "ted_channels.antivirus")
    assert "hq" in message


def test_a_host_in_external_subscribers_and_subscribers_is_a_problem() -> None:
    data = small(s01={"ted_parent": "s02"})
    data["external_subscribers"] = {"hosts": ["s01"]}
    assert [(host, message) for host, _, message, _ in problems(data)] == [
        ("s01", "is in external_subscribers and in subscribers")
    ]


@pytest.mark.parametrize("name", [".hidden", "a/b", "a b", "x" * 129, "ünder"])
def test_a_host_name_that_is_no_directory_name_is_a_problem(name: str) -> None:
    data = small()
    data["subscribers"]["hosts"].append(name)
    data["_meta"]["hostvars"][name] = {"ted_address": "10.0.0.1"}
    [(host, variable, message, _)] = problems(data)
    assert (host, variable) == (name, None)
    assert "is not a name" in message


def test_a_numeric_name_without_quotes_is_explained() -> None:
    [(_, _, _, hint)] = problems(small(s01={"ted_parent": 7}))
    assert hint == 'put it in quotes: "7"'


# Warnings.


def test_a_variable_on_a_host_of_the_wrong_role_is_a_warning() -> None:
    assert warnings(small(s01={"ted_routing_hierarchy": []})) == [
        "s01: ted_routing_hierarchy: has no effect: the host is not in the group distributors"
    ]
    assert warnings(small(hq={"ted_extract_schedule": "never"})) == [
        "hq: ted_extract_schedule: has no effect: the host is a Distributor and receives nothing"
    ]
    assert warnings(small(x01={"ted_port": 1})) == ["x01: ted_port: has no effect: the host is in none of ted's groups"]


def test_a_variable_set_for_all_hosts_alike_is_no_warning() -> None:
    for_all = {"ted_extract_schedule": "immediately"}
    assert warnings(small(hq=for_all, s01=for_all, s02=for_all, x01=for_all)) == []
    for_both = {"ted_variables": {"VOLUME": "/data"}}
    assert warnings(small(hq=for_both, s01=for_both, s02={"ted_variables": {"VOLUME": "/other"}})) == []
    own = {"ted_variables": {"VOLUME": "/data/s01"}}
    assert warnings(small(hq=for_both, s01=own)) == [], "a template below `all`"
    assert len(warnings(small(hq=for_both, s01={"ted_variables": {"OTHER": "/other"}}))) == 1


def test_a_vaulted_value_stays_unread_and_is_no_problem() -> None:
    vaulted = {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n3362\n"}
    data = small(hq={"ted_database_url": vaulted}, s01={"ted_variables": {"PASSWORD": vaulted, "A": 1}})
    assert warnings(data) == ["hq: ted_database_url: is encrypted with Ansible Vault and was not read"]
    settings = parse_inventory(data).nodes["s01"].subscriber
    assert settings is not None
    assert settings.variables == {"A": "1"}


def test_subscribers_without_a_distributor_are_a_warning() -> None:
    assert "nobody sends" in warnings({"subscribers": {"hosts": ["s01"]}})[0]


# Hostile data.


@pytest.mark.parametrize(
    "data",
    [[], {"a": 5}, {"a": {"hosts": "s01"}}, {"a": {"children": [1]}}, {"a": {"vars": [1]}},
     {"_meta": {"hostvars": []}}, {"_meta": {"hostvars": {"a": 5}}}],
)  # fmt: skip
def test_what_is_no_inventory_is_a_config_error(data: Any) -> None:
    with pytest.raises(ConfigError):
        parse_inventory(data)


def test_groups_in_a_loop_end_nothing() -> None:
    data = small()
    data["antivirus"] = {"children": ["b"], "hosts": ["s01"], "vars": {"ted_port": 7}}
    data["b"] = {"children": ["antivirus"], "hosts": ["s02"], "vars": {"ted_port": 8}}
    assert parse_inventory(data).channels["antivirus"].members == ("s01", "s02")


def test_a_deeply_nested_value_is_an_error_and_no_crash() -> None:
    value: Any = "x"
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ConfigError):
        parse_inventory(small(s01={"ted_parent": value}, s02={"ted_parent": copy.copy(value)}))
    with pytest.raises(ConfigError):
        parse_inventory(small(hq={"ted_routing_hierarchy": value}))


def test_a_hierarchy_may_be_of_any_depth() -> None:
    names = [f"n{number}" for number in range(400)]
    hierarchy: Any = []
    for name in reversed(names):
        hierarchy = [{name: hierarchy}]
    data = small(hq={"ted_routing_hierarchy": hierarchy})
    data["subscribers"]["hosts"] += names
    assert len(parse_inventory(data).subscribers) == 402


# Compact.


def test_compact_keeps_what_ted_needs_and_nothing_else() -> None:
    data = small(
        s01={"ansible_host": "10.0.0.1", "ansible_password": "secret", "ted_port": 1, "ted_venv": "/opt", "other": 2}
    )
    data["all"] = {"children": ["subscribers"], "vars": {"ted_timeout": 5, "colour": "red"}}
    assert compact(data) == {
        "_meta": {
            "hostvars": {
                "hq": {"ted_channels": {"antivirus": {}}, "ted_timeout": 5},
                "s01": {"ansible_host": "10.0.0.1", "ted_port": 1, "ted_timeout": 5},
                "s02": {"ted_timeout": 5},
                "x01": {"ted_timeout": 5},
            }
        },
        "all": {"children": ["subscribers"]},
        "antivirus": {"children": ["subscribers"]},
        "distributors": {"hosts": ["hq"]},
        "subscribers": {"hosts": ["s01", "s02"]},
    }


def test_mappings_may_come_as_json_text_as_ini_inventories_write_them() -> None:
    data = {
        "_meta": {"hostvars": {name: {"ted_channels": '{"tills": {"active": true}}'} for name in ("hq", "t1")}},
        "all": {"children": ["distributors", "tills"]}, "distributors": {"hosts": ["hq"]}, "tills": {"hosts": ["t1"]},
    }  # fmt: skip
    assert parse_inventory(data).channels["tills"].members == ("t1",)


def test_a_variable_of_a_run_and_a_misspelt_group_are_doubtful() -> None:
    assert warnings(small(hq={"ted_distribution": {}})) == [
        "hq: ted_distribution: narrows one run: it belongs after -e, not here"
    ]
    assert warnings({"subscriber": {"hosts": ["s01"]}, "distributors": {"hosts": ["hq"]}}) == [
        "there is no group subscribers; the group subscriber means nothing to ted"
    ]


def test_a_misspelt_group_of_the_contract_is_named_wherever_it_shows() -> None:
    data = small()
    data["distributor"] = data.pop("distributors")
    data["_meta"]["hostvars"]["hq"]["ted_routing_hierarchy"] = ["s01"]
    assert {(str(warning), warning.hint) for warning in examine_inventory(data).warnings} == {
        ("there is no group distributors; the group distributor means nothing to ted", "did you mean distributors?"),
        ("hq: ted_routing_hierarchy: has no effect: the group distributor of this host means nothing to ted",
         "did you mean distributors?"),
    }  # fmt: skip


def test_a_channel_may_have_a_name_that_is_nearly_a_group_of_the_contract() -> None:
    data = {
        "_meta": {"hostvars": {name: {"ted_channels": {"subscriber": {}}} for name in ("hq", "s01")}},
        "distributors": {"hosts": ["hq"]}, "subscriber": {"hosts": ["s01"]},
    }  # fmt: skip
    assert warnings(data) == []
