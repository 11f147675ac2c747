"""Who sends to whom: routes, routing slips, and what is wrong or doubtful about them.

Rules, for a Distributor D and a target T (the routing rule of the inventory contract):
 1. T stands in D's hierarchy: the path through the hierarchy to T.
 2. Else T has a parent P: the route to P by these same rules, then T. If P is not in D's hierarchy and
    ``ted_unlisted_parent`` is ``direct``: D, T.
 3. Else D, T; reported as orphaned when other subscribers have parents.
 * Each rule names one sender for T under D, so all routes of D together are a tree: a slip is the union
   of its targets' routes and carries one copy per edge.
 * D itself as a target holds the revision already: its route is (D,).
 * Loops, unknown parents and misplaced External Subscribers are problems that name the hosts.
 * Names are sorted wherever an order is free: the order of the inventory never shows.

Pure: opens nothing, asks no clock; nothing recurses, so a chain may be as long as the inventory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ted.errors import InventoryError
from ted.topology.hierarchy import walk
from ted.topology.model import Channel, Node, Problem, Topology
from ted.topology.names import suggestion

MANY_RECEIVERS = 40


@dataclass(frozen=True)
class ChannelRoutes:
    """The routing slip of one Distributor for one channel.

    Attributes:
        distributor: Who sends.
        channel: To whose subscribers.
        distributions: The active ones of that Distributor on that channel, sorted.
        edges: ``(sender, receiver)``, breadth first: a sender stands as a receiver before it sends.
        paths: For every target the nodes from the Distributor to it, both included.
        warnings: What a person may want to mend.
    """

    distributor: str
    channel: str
    distributions: tuple[str, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the shape of one route of ``ted routes --json``."""
        return {
            "distributor": self.distributor,
            "channel": self.channel,
            "distributions": list(self.distributions),
            "edges": [list(edge) for edge in self.edges],
            "paths": {target: list(path) for target, path in self.paths.items()},
            "warnings": [warning.message for warning in self.warnings],
        }


@dataclass(frozen=True)
class RouteTree:
    """A node of a slip with everything below it.

    Attributes:
        name: The node.
        target: Whether it receives for itself, or only passes on.
        children: Those it sends to, sorted by name.
        receivers: How many targets receive through it, itself not counted.
    """

    name: str
    target: bool
    children: tuple[RouteTree, ...] = ()
    receivers: int = 0


class Router:
    """The routes of one Distributor, each node's sender looked up once.

    Raises:
        UnknownNameError: The host is no Distributor.
    """

    def __init__(self, topology: Topology, distributor: str) -> None:
        settings = topology.distributor(distributor)
        self.distributor = distributor
        self._nodes = topology.nodes
        self._direct = settings.unlisted_parent == "direct"
        self._senders: dict[str, str | None] = {distributor: None}
        for sender, receiver in walk(settings.routing_hierarchy, distributor):
            self._senders.setdefault(receiver, sender)
        self._listed = frozenset(self._senders)
        self._paths: dict[str, tuple[str, ...]] = {distributor: (distributor,)}

    def listed(self, name: str) -> bool:
        """Say whether a node stands in this Distributor's hierarchy (or is the Distributor)."""
        return name in self._listed

    def sender(self, name: str) -> str | None:
        """Return who sends to ``name``; ``None`` for the Distributor itself."""
        if name not in self._senders:
            parent = parent_of(self._nodes.get(name))
            unreachable = parent is None or (self._direct and parent not in self._listed)
            self._senders[name] = self.distributor if unreachable else parent
        return self._senders[name]

    def orphaned(self, name: str) -> bool:
        """Say whether the Distributor sends to ``name`` only for want of a parent."""
        return name not in self._listed and parent_of(self._nodes.get(name)) is None

    def path(self, target: str) -> tuple[str, ...]:
        """Return the nodes from the Distributor to ``target``, both included.

        Raises:
            InventoryError: Following parents came back to a node already passed.
        """
        climb: list[str] = []
        seen: set[str] = set()
        name: str | None = target
        while name is not None and name not in self._paths:
            if name in seen:
                raise _loop_error(self.distributor, (*climb[climb.index(name) :], name))
            seen.add(name)
            climb.append(name)
            name = self.sender(name)
        for below in reversed(climb[1:]):  # relays: remembered, so that siblings share the work
            self._paths[below] = (*self._paths[self.sender(below) or ""], below)
        if climb:
            self._paths[target] = (*self._paths[self.sender(target) or ""], target)
        return self._paths[target]


def parent_of(node: Node | None) -> str | None:
    """Return the ``ted_parent`` of a node, ``None`` where it has none."""
    return node.subscriber.parent if node is not None and node.subscriber is not None else None


def route(topology: Topology, distributor: str, target: str) -> tuple[str, ...]:
    """Return the nodes that a revision passes from ``distributor`` to ``target``, both included.

    Raises:
        UnknownNameError: No such Distributor, or no such host.
        InventoryError: Its parents form a loop.
    """
    router = Router(topology, distributor)
    return router.path(topology.node(target).name)


def slips(
    topology: Topology,
    distributor: str | None = None,
    channel: str | None = None,
    limit: Collection[str] | None = None,
) -> list[ChannelRoutes]:
    """Return a slip for every Distributor and channel that one of its distributions names.

    Args:
        topology: Who is there.
        distributor: Only this one's.
        channel: Only for this channel.
        limit: Only these hosts as targets (relays on their way stay); none of them a target: an empty slip.

    Returns:
        Slips sorted by Distributor and channel. One with an inactive channel, or without an active
        distribution, has no edges and says why in its warnings.

    Raises:
        UnknownNameError: No such Distributor, channel or host.
    """
    for name in sorted(limit or ()):
        topology.node(name)
    if channel is not None:
        topology.channel(channel)
    chosen = topology.distributors if distributor is None else (distributor,)
    found: list[ChannelRoutes] = []
    for owner in chosen:
        channels = _channels_of(topology, owner)
        router = Router(topology, owner)
        found += [
            _slip(topology, router, name, channels[name], limit) for name in sorted(channels) if channel in (None, name)
        ]
    return found


def slip_tree(routes: ChannelRoutes) -> RouteTree:
    """Return the slip as a tree that starts at its Distributor; children sorted by name."""
    children: dict[str, list[RouteTree]] = {}
    for sender, receiver in reversed(routes.edges):  # the deepest first: what is below is already there
        tree = _tree(receiver, routes, children)
        children.setdefault(sender, []).append(tree)
    return _tree(routes.distributor, routes, children)


def routing_problems(topology: Topology) -> list[Problem]:
    """Return every loop, unknown name and misplaced External Subscriber."""
    problems = [*_parent_problems(topology), *_hierarchy_problems(topology), *_loop_problems(topology)]
    return list(dict.fromkeys(problems))


def routing_warnings(topology: Topology) -> list[Problem]:
    """Return what is legal and doubtful: parents never followed, orphans, crowded senders, nodes in one place."""
    found = [*_uncut_loops(topology), *_at_one_address(topology), *_in_one_directory(topology)]
    receivers: dict[str, set[str]] = {}
    for slip in slips(topology):
        found += [warning for warning in slip.warnings if warning.variable is not None]
        for sender, receiver in slip.edges:
            receivers.setdefault(sender, set()).add(receiver)
    # Crowds are counted over all slips: two channels of 30 are 60 receivers for whoever sends to both.
    found += _crowds({sender: len(names) for sender, names in receivers.items()})
    return list(dict.fromkeys(found))


def _at_one_address(topology: Topology) -> Iterator[Problem]:
    """Yield nodes that would listen where another does: right only where each has a network of its own."""
    first: dict[tuple[str, int], str] = {}
    for name, node in topology.nodes.items():
        other = first.setdefault((node.address, node.port), name)
        if other != name:
            text = f"{node.address} port {node.port} is {other}'s too: one of them cannot listen"
            yield Problem(name, "ted_port", text, "give each node of one machine a ted_port of its own")


def _in_one_directory(topology: Topology) -> Iterator[Problem]:
    """Yield nodes of one machine that would write over each other's state or configuration."""
    first: dict[tuple[str, str, str], str] = {}
    for name, node in topology.nodes.items():
        for variable, directory in (
            ("ted_working_directory", node.working_directory), ("ted_config_directory", node.config_directory),
        ):  # fmt: skip
            other = first.setdefault((variable, node.address, directory), name)
            if other != name:
                text = f"{directory} at {node.address} is {other}'s too: one node would write over the other"
                yield Problem(name, variable, text, f"give each node of one machine a {variable} of its own")


# Slips.


def _channels_of(topology: Topology, distributor: str) -> dict[str, tuple[str, ...]]:
    """Channel -> active distributions of this Distributor, sorted; a channel with none active is kept."""
    found: dict[str, list[str]] = {}
    for name, distribution in sorted(topology.distributor(distributor).distributions.items()):
        for channel in distribution.channels:
            if channel in topology.channels:
                found.setdefault(channel, []).extend([name] if distribution.active else [])
    return {channel: tuple(names) for channel, names in found.items()}


def _slip(
    topology: Topology,
    router: Router,
    channel: str,
    distributions: tuple[str, ...],
    limit: Collection[str] | None,
) -> ChannelRoutes:
    reason = _nothing_to_send(router.distributor, topology.channels[channel], distributions)
    if reason is not None:
        return ChannelRoutes(router.distributor, channel, distributions, warnings=(reason,))
    wanted = topology.targets(channel)
    targets = [name for name in wanted if limit is None or name in limit]
    paths = {target: router.path(target) for target in sorted(targets)}
    edges = tuple(_breadth_first(router.distributor, paths.values()))
    warnings = (*_orphans(topology, router, targets), *_crowds(Counter(sender for sender, _ in edges)))
    return ChannelRoutes(router.distributor, channel, distributions, edges, paths, warnings)


def _nothing_to_send(owner: str, channel: Channel, distributions: tuple[str, ...]) -> Problem | None:
    if not channel.active:
        text = f"channel {channel.name} is not active: nothing is sent"
        return Problem(owner, f"ted_channels.{channel.name}.active", text)
    if not distributions:
        text = f"no active distribution on channel {channel.name}: nothing is sent"
        return Problem(owner, "ted_distributions", text)
    return None


def _breadth_first(top: str, paths: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    receivers: dict[str, set[str]] = {}
    known: set[str] = {top}
    for path in paths:
        for position in range(len(path) - 1, 0, -1):  # upward, until a part that an earlier path covered
            if path[position] in known:
                break
            known.add(path[position])
            receivers.setdefault(path[position - 1], set()).add(path[position])
    tier = [top]
    while tier:
        edges = [(sender, receiver) for sender in tier for receiver in sorted(receivers.get(sender, ()))]
        yield from edges
        tier = [receiver for _, receiver in edges]


def _orphans(topology: Topology, router: Router, targets: Iterable[str]) -> list[Problem]:
    if not _anyone_has_a_parent(topology, router):
        return []
    return [
        Problem(
            name,
            "ted_parent",
            f"{name} is orphaned: no ted_parent, and not in the hierarchy of {router.distributor}",
            "give it a ted_parent, or list it in ted_routing_hierarchy",
        )
        for name in sorted(targets)
        if router.orphaned(name)
    ]


def _anyone_has_a_parent(topology: Topology, router: Router) -> bool:
    # Below another in the hierarchy is a parent as well.
    hierarchy = topology.distributor(router.distributor).routing_hierarchy
    return any(item.children for item in hierarchy) or any(
        parent_of(topology.nodes[name]) for name in topology.subscribers
    )


def _crowds(receivers: Mapping[str, int]) -> list[Problem]:
    return [
        Problem(
            sender,
            None,
            f"{sender} sends to {count} receivers itself; more than {MANY_RECEIVERS} is much for one node",
            "give some of them a parent of their own",
        )
        for sender, count in sorted(receivers.items())
        if count > MANY_RECEIVERS
    ]


def _tree(name: str, routes: ChannelRoutes, below: dict[str, list[RouteTree]]) -> RouteTree:
    children = tuple(sorted(below.pop(name, []), key=lambda tree: tree.name))
    receivers = sum(child.receivers + child.target for child in children)
    return RouteTree(name, name in routes.paths, children, receivers)


# Problems.


def _parent_problems(topology: Topology) -> Iterator[Problem]:
    external = frozenset(topology.external_subscribers)
    for name, node in sorted(topology.nodes.items()):
        parent = parent_of(node)
        if parent is None:
            if name in external:
                yield Problem(
                    name,
                    "ted_parent",
                    f"External Subscriber {name} has no parent",
                    "name one of your subscribers",
                )
        elif parent not in topology.nodes:
            yield Problem(
                name,
                "ted_parent",
                f"unknown parent {parent!r}: no such host",
                suggestion(parent, topology.nodes) or "add that host to the inventory, or name another one",
            )
        elif parent in external:
            yield _external_as_parent(name, "ted_parent", parent)


def _external_as_parent(host: str, variable: str, external: str) -> Problem:
    return Problem(
        host,
        variable,
        f"{external} is an External Subscriber and cannot be a parent",
        "name a host of your own subscribers",
    )


def _hierarchy_problems(topology: Topology) -> Iterator[Problem]:
    external = frozenset(topology.external_subscribers)
    variable = "ted_routing_hierarchy"
    for name in topology.distributors:
        edges = list(walk(topology.distributor(name).routing_hierarchy, name))
        for receiver, times in sorted(Counter(receiver for _, receiver in edges).items()):
            if receiver == name:
                yield Problem(name, variable, f"a loop: {name} stands in its own hierarchy", "list what is below it")
            elif receiver not in topology.nodes:
                hint = suggestion(receiver, topology.nodes)
                yield Problem(name, variable, f"unknown host {receiver!r}", hint)
            elif times > 1:
                yield Problem(
                    name,
                    variable,
                    f"{receiver} stands in it {times} times: a loop, or two senders for one node",
                    "keep one of its places",
                )
        for sender, _ in edges:
            if sender in external:
                yield _external_as_parent(name, variable, sender)


def _loop_problems(topology: Topology) -> Iterator[Problem]:
    """Loops that some Distributor would run into; without a Distributor, every one."""
    loops = _parent_loops(topology)
    for loop in loops:
        follower = _follower(topology, loop)
        if follower is not None or not topology.distributors:
            yield Problem(loop[0], "ted_parent", _loop_text(loop), "take the ted_parent of one of them away")


def _uncut_loops(topology: Topology) -> Iterator[Problem]:
    for loop in _parent_loops(topology):
        if _follower(topology, loop) is None and topology.distributors:
            text = f"{_loop_text(loop)}; only the routing hierarchies keep it from being followed"
            yield Problem(loop[0], "ted_parent", text, "take the ted_parent of one of them away")


def _follower(topology: Topology, loop: tuple[str, ...]) -> str | None:
    """Return a Distributor for which nothing breaks the loop."""
    for name in topology.distributors:
        router = Router(topology, name)
        if all(router.sender(host) == parent_of(topology.nodes[host]) for host in loop):
            return name
    return None


def _parent_loops(topology: Topology) -> list[tuple[str, ...]]:
    """Return each loop of ``ted_parent`` once, its smallest name first, then its parent, and so on."""
    loops: list[tuple[str, ...]] = []
    done: set[str] = set()
    for start in sorted(topology.nodes):
        climb: dict[str, int] = {}
        name: str | None = start
        while name is not None and name not in done and name not in climb:
            climb[name] = len(climb)
            name = parent_of(topology.nodes.get(name))
        if name in climb:
            loop = list(climb)[climb[name] :]
            first = loop.index(min(loop))
            loops.append((*loop[first:], *loop[:first]))
        done.update(climb)
    return loops


def _loop_text(loop: tuple[str, ...]) -> str:
    return f"a loop of parents: {' -> '.join((*loop, loop[0]))}"


def _loop_error(distributor: str, loop: tuple[str, ...]) -> InventoryError:
    problem = Problem(loop[0], "ted_parent", _loop_text(loop[:-1]), "take the ted_parent of one of them away")
    return InventoryError(f"{problem} (on the way from {distributor})", problems=[problem.to_dict()], hint=problem.hint)
