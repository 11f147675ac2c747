"""Laws of routing, whatever the inventory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ted.topology import ChannelRoutes, RouteTree, Topology, compact, parse_inventory, route, slip_tree, slips

Data = dict[str, Any]


@st.composite
def inventories(draw: st.DrawFn) -> Data:
    """Inventories without a mistake: up to two Distributors, any hierarchies, parents without loops."""
    hosts = [f"s{number:02d}" for number in range(draw(st.integers(1, 14)))]
    distributors = ["A", "B"][: draw(st.integers(1, 2))]
    # A parent stands earlier in the list: no loops. Some parents are Distributors, some relays in no group.
    hostvars: Data = {}
    for number, host in enumerate(hosts):
        above = [*hosts[:number], *distributors]
        parent = draw(st.none() | st.sampled_from(above))
        hostvars[host] = {"ted_parent": parent} if parent else {}
    members = st.lists(st.sampled_from([*hosts, *distributors]), unique=True)
    channels = {name: draw(members) for name in ("one", "two")}
    for name in distributors:
        hostvars[name] = {
            "ted_channels": {"one": {}, "two": {}},
            "ted_distributions": {
                f"dist{number}": {"type": "file", "channels": draw(st.lists(st.sampled_from(["one", "two"])))}
                for number in range(draw(st.integers(0, 3)))
            },
            "ted_routing_hierarchy": draw(hierarchies([host for host in hosts if draw(st.booleans())])),
            "ted_unlisted_parent": draw(st.sampled_from(["via_parent", "direct"])),
        }
    return {
        "_meta": {"hostvars": hostvars},
        "distributors": {"hosts": distributors},
        "subscribers": {"hosts": draw(st.lists(st.sampled_from(hosts), unique=True))},
        **{name: {"hosts": found} for name, found in channels.items()},
    }


@st.composite
def hierarchies(draw: st.DrawFn, names: list[str]) -> list[Any]:
    """Any forest over ``names``, written as the contract says."""
    order = draw(st.permutations(names))
    below: dict[int, list[int]] = {}
    for number in range(len(order)):
        below.setdefault(draw(st.integers(-1, number - 1)), []).append(number)

    def written(number: int) -> Any:
        children = [written(child) for child in below.get(number, [])]
        return {order[number]: children} if children or draw(st.booleans()) else order[number]

    return [written(number) for number in below.get(-1, [])]


def by_the_book(topology: Topology, distributor: str, target: str) -> tuple[str, ...]:
    """The routing rule, word for word."""
    settings = topology.distributor(distributor)

    def through(items: Any, way: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for item in items:
            found[item.name] = (*way, item.name)
            found |= through(item.children, found[item.name])
        return found

    listed = through(settings.routing_hierarchy, (distributor,))
    if target == distributor:
        return (distributor,)
    if target in listed:
        return listed[target]
    subscriber = topology.nodes[target].subscriber
    parent = subscriber.parent if subscriber else None
    if parent is None:
        return distributor, target
    if parent not in listed and settings.unlisted_parent == "direct":
        return distributor, target
    return (*by_the_book(topology, distributor, parent), target)


def names(tree: RouteTree) -> list[str]:
    return [tree.name, *(name for child in tree.children for name in names(child))]


def check_slip(topology: Topology, slip: ChannelRoutes) -> None:
    receivers = [receiver for _, receiver in slip.edges]
    assert len(set(receivers)) == len(receivers), "somebody receives twice"
    assert slip.distributor not in receivers
    assert set(slip.paths) == set(topology.channels[slip.channel].members)
    reached = {slip.distributor}
    for sender, receiver in slip.edges:
        assert sender in reached, "it sends before it has it"
        reached.add(receiver)
    on_the_way = {edge for path in slip.paths.values() for edge in pairwise(path)}
    assert set(slip.edges) == on_the_way
    for target, path in slip.paths.items():
        assert (path[0], path[-1]) == (slip.distributor, target)


@given(inventories())
def test_every_route_is_what_the_rule_says(data: Data) -> None:
    topology = parse_inventory(data)
    for distributor in topology.distributors:
        for target in topology.nodes:
            assert route(topology, distributor, target) == by_the_book(topology, distributor, target)


@given(inventories())
def test_every_target_is_reached_exactly_once_and_every_edge_carries_one_copy(data: Data) -> None:
    topology = parse_inventory(data)
    for slip in slips(topology):
        if slip.distributions:
            check_slip(topology, slip)


@given(inventories())
def test_the_tree_of_a_slip_holds_each_node_once_and_counts_its_targets(data: Data) -> None:
    for slip in slips(parse_inventory(data)):
        tree = slip_tree(slip)
        assert sorted(names(tree)) == sorted({slip.distributor, *(receiver for _, receiver in slip.edges)})
        assert tree.receivers == len(slip.paths) - (slip.distributor in slip.paths)


@given(inventories(), st.data())
def test_taking_a_parent_or_a_place_in_the_hierarchy_away_loses_no_target(data: Data, choice: st.DataObject) -> None:
    hostvars = data["_meta"]["hostvars"]
    host = choice.draw(st.sampled_from(sorted(hostvars)))
    before = {(slip.distributor, slip.channel): set(slip.paths) for slip in slips(parse_inventory(data))}
    if "ted_routing_hierarchy" in hostvars[host]:
        hostvars[host]["ted_routing_hierarchy"] = hostvars[host]["ted_routing_hierarchy"][1:]
    else:
        hostvars[host].pop("ted_parent", None)
    topology = parse_inventory(data)
    after = slips(topology)
    assert {(slip.distributor, slip.channel): set(slip.paths) for slip in after} == before
    for slip in after:
        if slip.distributions:
            check_slip(topology, slip)


@given(inventories(), st.randoms(use_true_random=False))
def test_the_order_of_the_inventory_does_not_matter(data: Data, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items}
        if isinstance(value, list):
            return random.sample(value, len(value))
        return value

    assert [slip.to_dict() for slip in slips(parse_inventory(shuffled(data)))] == [
        slip.to_dict() for slip in slips(parse_inventory(data))
    ]


@given(inventories(), st.lists(st.integers(0, 13), max_size=5))
def test_a_limit_leaves_the_routes_of_those_in_it_as_they_are(data: Data, chosen: list[int]) -> None:
    topology = parse_inventory(data)
    limit = {name for number in chosen if (name := f"s{number:02d}") in topology.nodes}
    for whole, part in zip(slips(topology), slips(topology, limit=limit), strict=True):
        assert part.paths == {target: path for target, path in whole.paths.items() if target in limit}
        assert set(part.edges) <= set(whole.edges)


@given(inventories())
def test_a_compacted_inventory_gives_the_same_topology(data: Data) -> None:
    small = compact(data)
    assert parse_inventory(small) == parse_inventory(data)
    assert compact(small) == small
