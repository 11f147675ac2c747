"""What several commands share: which topology they work on."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ted.cli.main import Settings
from ted.errors import TedError, UnknownNameError, UsageError
from ted.topology.names import suggestion

if TYPE_CHECKING:
    from ted.topology.model import Topology

TOPOLOGY_FILE = "topology.json"
_NAMES_SHOWN = 8


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
    from ted.config import NodeConfig

    with suppress(TedError):
        config = NodeConfig.load(settings.config)
        if not config.distributor:
            return UsageError(f"{config.node} is no Distributor, and no inventory is named",
                              hint="run it on a Distributor, or name an inventory with --inventory")  # fmt: skip
    return UsageError(
        f"no inventory is named, and there is no {settings.config / TOPOLOGY_FILE}",
        hint="name one with --inventory; on Distributors playbooks/install.yml places that file",
    )


def refuse_unknown(what: str, asked: Iterable[str], known: Collection[str]) -> None:
    """Return when everything asked for is known.

    Raises:
        UnknownNameError: A name is not; says which there are, or which was probably meant.
    """
    for name in asked:
        if name not in known:
            hint = suggestion(name, known) or f"there are {', '.join(sorted(known)[:_NAMES_SHOWN]) or 'none yet'}"
            raise UnknownNameError(f"no {what} {name!r} is known here", hint=hint)
