"""The routing rule, line by line, and the fixtures of TED's manual."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ted.errors import InventoryError, UnknownNameError
from ted.topology import RouteTree, parse_inventory, route, routing_warnings, slip_tree, slips

Data = dict[str, Any]


def inventory(
    parents: dict[str, str | None],
    hierarchy: list[Any] | None = None,
    *,
    distributor: dict[str, Any] | None = None,
    external: dict[str, str | None] | None = None,
    also: tuple[str, ...] = (),
) -> Data:
    """One Distributor D with one distribution on a channel of all subscribers (and External Subscribers)."""
    external = external or {}
    own = {
        "ted_distributions": {"one": {"type": "file", "channels": ["all_of_them"]}},
        "ted_channels": {"all_of_them": {}},
        "ted_routing_hierarchy": hierarchy or [],
    }
    named = {name: {"ted_parent": parent} if parent else {} for name, parent in {**parents, **external}.items()}
    return {
        "_meta": {"hostvars": {"D": own | (distributor or {}), **named, **{name: {} for name in also}}},
        "distributors": {"hosts": ["D"]},
        "subscribers": {"hosts": list(parents)},
        "external_subscribers": {"hosts": list(external)},
        "all_of_them": {"children": ["subscribers", "external_subscribers"]},
        "all": {"children": ["ungrouped"]},
        "ungrouped": {"hosts": list(also)},
    }


def path(data: Data, target: str, distributor: str = "D") -> str:
    return " ".join(route(parse_inventory(data), distributor, target))


def problems(data: Data) -> list[dict[str, Any]]:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(data)
    return caught.value.problems


def warnings(data: Data) -> list[str]:
    return [str(warning) for warning in routing_warnings(parse_inventory(data))]


# The rule.


def test_a_target_in_the_hierarchy_is_reached_through_the_hierarchy() -> None:
    assert path(inventory({"a": None, "b": None, "c": None}, [{"a": [{"b": ["c"]}]}]), "c") == "D a b c"


def test_the_hierarchy_counts_more_than_the_parent() -> None:
    assert path(inventory({"a": None, "b": "a", "c": None}, [{"c": ["b"]}, "a"]), "b") == "D c b"


def test_a_target_outside_the_hierarchy_hangs_below_its_parent() -> None:
    assert path(inventory({"a": None, "b": None, "c": "b"}, [{"a": ["b"]}]), "c") == "D a b c"


def test_parents_of_parents_are_followed() -> None:
    assert path(inventory({"a": None, "b": "a", "c": "b", "d": "c"}), "d") == "D a b c d"


def test_an_unlisted_parent_is_used_unless_the_distributor_says_direct() -> None:
    parents = {"a": None, "b": "a"}
    assert path(inventory(parents), "b") == "D a b"
    assert path(inventory(parents, distributor={"ted_unlisted_parent": "direct"}), "b") == "D b"


def test_direct_changes_nothing_below_a_listed_parent() -> None:
    direct = {"ted_unlisted_parent": "direct"}
    data = inventory({"a": None, "b": "a", "c": "b"}, ["a"], distributor=direct)
    assert path(data, "b") == "D a b"
    assert path(data, "c") == "D c"  # its parent b is not in the hierarchy


def test_without_hierarchy_and_parent_the_distributor_sends_itself() -> None:
    assert path(inventory({"a": None}), "a") == "D a"


def test_an_orphan_is_reported_when_others_have_parents() -> None:
    data = inventory({"a": None, "b": "a", "c": None}, ["a"])
    assert [text for text in warnings(data) if "orphaned" in text] == [
        "c: ted_parent: c is orphaned: no ted_parent, and not in the hierarchy of D"
    ]
    assert warnings(inventory({"a": None, "c": None})) == []


def test_a_parent_that_is_the_distributor_is_a_direct_route() -> None:
    assert path(inventory({"a": "D"}), "a") == "D a"


def test_a_parent_need_not_be_in_any_group_nor_on_the_channel() -> None:
    data = inventory({"a": "relay"}, also=("relay",))
    [slip] = slips(parse_inventory(data))
    assert slip.edges == (("D", "relay"), ("relay", "a"))
    assert dict(slip.paths) == {"a": ("D", "relay", "a")}


def test_the_parent_of_a_relay_in_no_group_is_followed() -> None:
    data = inventory({"a": "relay"}, also=("relay", "above"))
    data["_meta"]["hostvars"]["relay"] = {"ted_parent": "above"}
    assert path(data, "a") == "D above relay a"


def test_a_distributor_on_its_own_channel_has_a_route_without_an_edge() -> None:
    data = inventory({"a": None, "D": None})
    data["_meta"]["hostvars"]["D"] = inventory({"a": None})["_meta"]["hostvars"]["D"]
    [slip] = slips(parse_inventory(data))
    assert slip.paths["D"] == ("D",)
    assert slip.edges == (("D", "a"),)
    assert slip_tree(slip) == RouteTree("D", True, (RouteTree("a", True),), 1)


def test_a_slip_is_one_copy_per_edge_sender_before_receiver() -> None:
    data = inventory({"b": None, "a": None, "c": "b", "d": "b", "e": "c"}, ["b", "a"])
    [slip] = slips(parse_inventory(data))
    assert slip.edges == (("D", "a"), ("D", "b"), ("b", "c"), ("b", "d"), ("c", "e"))


def test_a_limit_keeps_only_those_targets_and_the_way_to_them() -> None:
    topology = parse_inventory(inventory({"a": None, "b": "a", "c": "a"}))
    [slip] = slips(topology, limit=["b"])
    assert slip.edges == (("D", "a"), ("a", "b"))
    assert list(slip.paths) == ["b"]
    [nobody] = slips(topology, limit=["D"])
    assert nobody.edges == ()


def test_unknown_names_are_errors_with_a_suggestion() -> None:
    topology = parse_inventory(inventory({"store1": None}))
    for wrong in ({"limit": ["store11"]}, {"channel": "all_of_then"}, {"distributor": "store1"}):
        with pytest.raises(UnknownNameError):
            slips(topology, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError) as caught:
        route(topology, "D", "store11")
    assert caught.value.hint == "did you mean store1?"


def test_suspended_subscribers_channels_and_distributions_get_nothing() -> None:
    data = inventory({"a": None, "b": "a"})
    data["_meta"]["hostvars"]["a"]["ted_inactive_channels"] = ["all_of_them"]
    [slip] = slips(parse_inventory(data))
    assert (list(slip.paths), slip.edges) == (["b"], (("D", "a"), ("a", "b")))  # a still relays

    data["_meta"]["hostvars"]["D"]["ted_channels"] = {"all_of_them": {"active": False}}
    [slip] = slips(parse_inventory(data))
    assert (slip.paths, slip.edges) == ({}, ())
    assert "not active" in slip.warnings[0].message

    data = inventory({"a": None})
    data["_meta"]["hostvars"]["D"]["ted_distributions"]["one"]["active"] = False
    [slip] = slips(parse_inventory(data))
    assert (slip.distributions, slip.edges) == ((), ())


# Problems.


def test_a_loop_of_parents_names_its_hosts_and_the_variable() -> None:
    [problem] = problems(inventory({"c": "b", "a": "c", "b": "a", "x": "a"}))
    assert problem["variable"] == "ted_parent"
    assert problem["message"] == "a loop of parents: a -> c -> b -> a"


def test_a_host_that_is_its_own_parent_is_a_loop() -> None:
    [problem] = problems(inventory({"a": "a"}))
    assert (problem["host"], problem["variable"]) == ("a", "ted_parent")


def test_a_loop_that_the_hierarchy_cuts_is_only_a_warning() -> None:
    data = inventory({"a": "b", "b": "a"}, [{"a": ["b"]}])
    assert path(data, "b") == "D a b"
    assert any("a loop of parents: a -> b -> a" in text for text in warnings(data))


def test_an_unknown_parent_is_a_problem() -> None:
    [problem] = problems(inventory({"store1": None, "b": "stroe1"}))
    assert (problem["host"], problem["variable"]) == ("b", "ted_parent")
    assert "'stroe1'" in problem["message"]
    assert problem["hint"] == "did you mean store1?"


def test_an_unknown_host_in_the_hierarchy_is_a_problem() -> None:
    [problem] = problems(inventory({"a": None}, [{"a": ["nobody"]}]))
    assert (problem["host"], problem["variable"]) == ("D", "ted_routing_hierarchy")
    assert "'nobody'" in problem["message"]


@pytest.mark.parametrize("hierarchy", [[{"a": ["b"]}, {"b": ["a"]}], [{"a": ["b", "b"]}], [{"a": [{"b": ["a"]}]}]])
def test_a_name_that_stands_twice_in_the_hierarchy_is_a_problem(hierarchy: list[Any]) -> None:
    found = problems(inventory({"a": None, "b": None}, hierarchy))
    assert {problem["variable"] for problem in found} == {"ted_routing_hierarchy"}


def test_the_distributor_in_its_own_hierarchy_is_a_problem() -> None:
    [problem] = problems(inventory({"a": None}, [{"D": ["a"]}]))
    assert "D stands in its own hierarchy" in problem["message"]


def test_an_external_subscriber_is_a_node_with_a_parent() -> None:
    data = inventory({"a": None}, external={"x": "a"})
    data["_meta"]["hostvars"]["x"]["ted_address"] = "x.partner.example"
    topology = parse_inventory(data)
    assert topology.nodes["x"].address == "x.partner.example"
    assert topology.external_subscribers == ("x",)
    assert "x" not in topology.subscribers
    assert route(topology, "D", "x") == ("D", "a", "x")


def test_an_external_subscriber_without_a_parent_is_a_problem() -> None:
    [problem] = problems(inventory({"a": None}, external={"x": None}))
    assert (problem["host"], problem["variable"]) == ("x", "ted_parent")


def test_an_external_subscriber_as_a_parent_is_a_problem() -> None:
    [problem] = problems(inventory({"a": None, "b": "x"}, external={"x": "a"}))
    assert (problem["host"], problem["variable"]) == ("b", "ted_parent")
    [problem] = problems(inventory({"a": None, "b": None}, [{"a": [{"x": ["b"]}]}], external={"x": "a"}))
    assert (problem["host"], problem["variable"]) == ("D", "ted_routing_hierarchy")


def test_more_than_40_direct_receivers_are_a_warning() -> None:
    forty = {f"s{number:02d}": None for number in range(40)}
    assert warnings(inventory(forty)) == []
    assert warnings(inventory({**forty, "s40": None})) == [
        "D: D sends to 41 receivers itself; more than 40 is much for one node"
    ]


def test_a_non_relay_in_the_hierarchy_is_fine() -> None:
    assert warnings(inventory({"a": None, "b": None}, ["a", "b"])) == []


# Fixtures of TED's manual.


def load_fixture() -> Data:
    names = [f"{number:02d}" for number in range(1, 11)]
    parents: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        parents |= {f"{name}-{end:02d}": name for end in range(1, 21)}
    hierarchy = [{"01": ["02", "03"]}, {"04": ["05", {"06": ["07", "08"]}]}, {"09": ["10"]}]
    return inventory(parents, hierarchy)


def test_fixture_load_the_distributor_sends_3_times_and_210_receive() -> None:
    [slip] = slips(parse_inventory(load_fixture()))
    tree = slip_tree(slip)
    assert [child.name for child in tree.children] == ["01", "04", "09"]
    assert len(slip.paths) == tree.receivers == 210
    assert len(slip.edges) == 210
    four = tree.children[1]
    assert len(four.children) == 22
    assert four.receivers == 104


def test_fixture_path() -> None:
    chain = dict.fromkeys(("04", "05", "06", "07"))
    hierarchy = [{"04": [{"05": [{"06": ["07"]}]}]}]
    assert path(inventory({**chain, "11": "07"}, hierarchy), "11") == "D 04 05 06 07 11"
    assert path(inventory({**chain, "11": None}, hierarchy), "11") == "D 11"


def test_fixture_two_distributors() -> None:
    data: Data = {
        "_meta": {
            "hostvars": {
                "A": {
                    "ted_distributions": {
                        "1": {"type": "file", "channels": ["one"]},
                        "2": {"type": "file", "channels": ["two"]},
                    },
                    "ted_routing_hierarchy": ["s1"],
                    "ted_channels": {"one": {}, "two": {}},
                },
                "B": {
                    "ted_distributions": {"3": {"type": "file", "channels": ["two"]}},
                    "ted_unlisted_parent": "direct",
                    "ted_channels": {"one": {}, "two": {}},
                },
                "s2": {"ted_parent": "s1"},
                "s3": {"ted_parent": "s1"},
            }
        },
        "distributors": {"hosts": ["A", "B"]},
        "subscribers": {"hosts": ["s1", "s2", "s3", "s4"]},
        "one": {"hosts": ["s1", "s2"]},
        "two": {"hosts": ["s3", "s4"]},
    }
    assert [slip.to_dict() for slip in slips(parse_inventory(data))] == [
        {
            "distributor": "A", "channel": "one", "distributions": ["1"],
            "edges": [["A", "s1"], ["s1", "s2"]],
            "paths": {"s1": ["A", "s1"], "s2": ["A", "s1", "s2"]},
            "warnings": [],
        },
        {
            "distributor": "A", "channel": "two", "distributions": ["2"],
            "edges": [["A", "s1"], ["A", "s4"], ["s1", "s3"]],
            "paths": {"s3": ["A", "s1", "s3"], "s4": ["A", "s4"]},
            "warnings": ["s4 is orphaned: no ted_parent, and not in the hierarchy of A"],
        },
        {
            "distributor": "B", "channel": "two", "distributions": ["3"],
            "edges": [["B", "s3"], ["B", "s4"]],
            "paths": {"s3": ["B", "s3"], "s4": ["B", "s4"]},
            "warnings": ["s4 is orphaned: no ted_parent, and not in the hierarchy of B"],
        },
    ]  # fmt: skip


# Scale.


def test_a_chain_longer_than_the_stack_is_routed() -> None:
    length = 3000
    parents = {f"n{number}": f"n{number - 1}" if number else None for number in range(length)}
    assert len(route(parse_inventory(inventory(parents)), "D", f"n{length - 1}")) == length + 1


def test_a_loop_longer_than_the_stack_is_found() -> None:
    parents: dict[str, str | None] = {f"n{number:04d}": f"n{(number + 1) % 3000:04d}" for number in range(3000)}
    [problem] = problems(inventory(parents))
    assert problem["host"] == "n0000"


def test_routing_10_000_subscribers_looks_each_parent_up_a_few_times_only() -> None:
    class Counting(dict[str, Any]):
        looked_up = 0

        def get(self, key: str, default: Any = None) -> Any:
            Counting.looked_up += 1
            return super().get(key, default)

    lans = {f"p{lan:03d}": None for lan in range(250)}
    ends = {f"{parent}-{end:02d}": parent for parent in lans for end in range(39)}
    topology = parse_inventory(inventory({**lans, **ends}, list(lans)))
    object.__setattr__(topology, "nodes", Counting(topology.nodes))
    [slip] = slips(topology)
    assert len(slip.edges) == 10_000
    assert Counting.looked_up <= 3 * 10_000


def test_the_order_of_the_inventory_does_not_show() -> None:
    data = load_fixture()
    shuffled = load_fixture()
    random.Random(7).shuffle(shuffled["subscribers"]["hosts"])
    shuffled["_meta"]["hostvars"] = dict(reversed(shuffled["_meta"]["hostvars"].items()))
    first, second = (slips(parse_inventory(item)) for item in (data, shuffled))
    assert [slip.to_dict() for slip in first] == [slip.to_dict() for slip in second]
    assert repr(first) == repr(second)


def test_two_nodes_at_one_address_and_port_are_warned_about() -> None:
    data = inventory({"a": None, "b": None})
    data["_meta"]["hostvars"]["a"]["ted_address"] = data["_meta"]["hostvars"]["b"]["ted_address"] = "192.0.2.1"
    assert [text for text in warnings(data) if "ted_port" in text] == [
        "b: ted_port: 192.0.2.1 port 7465 is a's too: one of them cannot listen"
    ]
    data["_meta"]["hostvars"]["b"]["ted_port"] = 7466
    assert [text for text in warnings(data) if "ted_port" in text] == []


def test_two_nodes_of_one_machine_in_one_directory_are_warned_about() -> None:
    data = inventory({"a": None, "b": None})
    own = data["_meta"]["hostvars"]
    own["a"]["ted_address"] = own["b"]["ted_address"] = "192.0.2.1"
    own["a"]["ted_working_directory"], own["b"]["ted_working_directory"] = "/var/lib/a", "/var/lib/b"
    assert [text for text in warnings(data) if "directory" in text] == [
        "b: ted_config_directory: /etc/ted at 192.0.2.1 is a's too: one node would write over the other"
    ]
    own["b"]["ted_config_directory"] = "/etc/ted-b"
    assert [text for text in warnings(data) if "directory" in text] == []
