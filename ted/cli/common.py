"""What several commands share: which topology they work on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ted.cli.main import Settings
from ted.errors import UsageError

if TYPE_CHECKING:
    from ted.topology.model import Topology

TOPOLOGY_FILE = "topology.json"


def inventory_of(settings: Settings) -> Path | None:
    """Return ``--inventory``, else this node's ``topology.json``; ``None`` where there is neither."""
    if settings.inventory is not None:
        return settings.inventory
    placed = settings.config / TOPOLOGY_FILE
    return placed if placed.is_file() else None


def topology_if_any(settings: Settings) -> Topology | None:
    """Return the topology, ``None`` where no inventory is named and none is placed on this node.

    Raises:
        InventoryError: The inventory breaks the contract.
        ConfigError: It cannot be read.
    """
    source = inventory_of(settings)
    if source is None:
        return None
    from ted.topology.inventory import load_inventory

    return load_inventory(source)


def topology_of(settings: Settings) -> Topology:
    """Return the topology of ``--inventory``, else of this node's ``topology.json``.

    Raises:
        UsageError: There is neither.
        InventoryError: The inventory breaks the contract.
        ConfigError: It cannot be read.
    """
    topology = topology_if_any(settings)
    if topology is None:
        raise no_inventory(settings)
    return topology


def no_inventory(settings: Settings) -> UsageError:
    """Return the error for a command that needs an inventory and has none."""
    return UsageError(
        f"no inventory is named, and there is no {settings.config / TOPOLOGY_FILE}",
        hint="name one with --inventory; on Distributors playbooks/install.yml places that file",
    )
