"""Who sends what to whom: the model, the inventory's reader, and the routing rule.

Everything here decides and does nothing; only ``ted.topology.inventory`` reads files and runs
``ansible-inventory``.
"""

from __future__ import annotations

from ted.topology.compact import compact
from ted.topology.model import (
    Channel,
    Distribution,
    DistributorSettings,
    HierarchyItem,
    Node,
    OutputRates,
    Problem,
    SubscriberSettings,
    Topology,
)
from ted.topology.parse import Examination, examine_inventory, parse_inventory
from ted.topology.routing import (
    ChannelRoutes,
    Router,
    RouteTree,
    route,
    routing_warnings,
    slip_tree,
    slips,
)
from ted.topology.schedule import Schedule, parse_refresh_schedule, parse_schedule
from ted.topology.units import parse_bytes, parse_duration_s, parse_rate_bytes_s

__all__ = [
    "Channel",
    "ChannelRoutes",
    "Distribution",
    "DistributorSettings",
    "Examination",
    "HierarchyItem",
    "Node",
    "OutputRates",
    "Problem",
    "RouteTree",
    "Router",
    "Schedule",
    "SubscriberSettings",
    "Topology",
    "compact",
    "examine_inventory",
    "parse_bytes",
    "parse_duration_s",
    "parse_inventory",
    "parse_rate_bytes_s",
    "parse_refresh_schedule",
    "parse_schedule",
    "route",
    "routing_warnings",
    "slip_tree",
    "slips",
]
