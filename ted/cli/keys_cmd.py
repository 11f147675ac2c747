"""``ted keys``: a Distributor's keys and catalog.

Rules:
 * Every command may be repeated; ``--json`` says whether anything changed.
 * ``--check`` says what would change and changes nothing.
 * Nothing secret is ever printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ted.cli.main import Commands, Settings, emit, tabulated
from ted.errors import ConfigError

if TYPE_CHECKING:
    from ted.trust.catalog import Catalog

DEFAULT_WORKING_DIRECTORY = "/var/lib/ted"


def node_setting(config: Path, key: str) -> str | None:
    """Return a text setting of ``<config>/node.yml``, ``None`` if it is not there.

    Raises:
        ConfigError: The file is not YAML, or not a dictionary.
    """
    path = config / "node.yml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", hint="see ted check") from error
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: not a dictionary of settings", hint="see ted check")
    value = settings.get(key)
    return None if value is None else str(value)


def distributor_name(settings: Settings, given: str | None) -> str:
    """Return the Distributor that is meant: as given, else this node.

    Raises:
        ConfigError: Neither is known.
    """
    name = given or node_setting(settings.config, "node")
    if name is None:
        raise ConfigError("which Distributor?", hint="--distributor NAME, or a node.yml with `node: NAME`")
    return name


def working_directory(settings: Settings, given: Path | None) -> Path:
    """Return the working directory: as given, else of ``node.yml``, else the default."""
    return given or Path(node_setting(settings.config, "working_directory") or DEFAULT_WORKING_DIRECTORY)


def catalog_directory(settings: Settings, distributor: str, given: Path | None) -> Path:
    """Return where the catalog of ``distributor`` is kept on this node.

    Raises:
        UnknownNameError: ``distributor`` is no possible name.
    """
    from ted.trust.names import check_name

    return working_directory(settings, given) / check_name("Distributor", distributor) / ".catalog"


def distributor_options(function: Any) -> Any:
    """Give a command ``--distributor`` and ``--working-directory``."""
    function = click.option(
        "--distributor", metavar="NAME", help="The Distributor; by default this node, as node.yml names it."
    )(function)
    return click.option(
        "--working-directory",
        type=click.Path(path_type=Path),
        help="By default as node.yml says, else /var/lib/ted.",
    )(function)


check_option = click.option("--check", is_flag=True, help="Say what would change; change nothing.")


def _catalog(settings: Settings, distributor: str, working: Path | None) -> Catalog:
    from ted.trust.catalog import Catalog

    return Catalog(catalog_directory(settings, distributor, working), settings.config / "keys")


@click.group("keys", cls=Commands)
def command() -> None:
    """Make, list, renew and change a Distributor's keys."""


@command.command()
@distributor_options
@check_option
@click.pass_obj
def create(settings: Settings, distributor: str | None, working_directory: Path | None, check: bool) -> None:
    """Make keys, root and an empty catalog, and trust them on this node."""
    from ted.trust.anchors import TrustStore

    name = distributor_name(settings, distributor)
    catalog = _catalog(settings, name, working_directory)
    if check and not catalog.exists():
        data = {"changed": True, "distributor": name, "root": None, "roles": []}
        emit(settings, data, f"{name}: keys and catalog would be made")
        return
    changed = False if check else catalog.create(name)
    root = catalog.root_bytes()
    trusted = TrustStore(settings.config / "trust").import_root(root, name, force=True, check=check)
    data = {"changed": changed or trusted.changed, "root": root.decode(), **catalog.describe()}
    emit(settings, data, f"{name}: {'made' if data['changed'] else 'already there'}: {catalog.keys.directory}")


@command.command("list")
@distributor_options
@click.pass_obj
def list_(settings: Settings, distributor: str | None, working_directory: Path | None) -> None:
    """List the roles, their keys, when they expire, and whether the private key is here."""
    name = distributor_name(settings, distributor)
    catalog = _catalog(settings, name, working_directory)
    if not catalog.exists():
        raise ConfigError(f"{name} has no keys", hint="a Distributor's are made by `ted keys create`; `ted trust list` "
                                                      "tells whom a Subscriber trusts")  # fmt: skip
    held = {key.keyid: key for key in catalog.keys.held()}
    data = catalog.describe()
    for role in data["roles"]:
        role["private_key_here"] = all(keyid in held for keyid in role["keyids"])
    emit(settings, {"changed": False, **data}, _table(data["roles"]))


@command.command()
@click.argument("role")
@distributor_options
@check_option
@click.pass_obj
def rotate(settings: Settings, role: str, distributor: str | None, working_directory: Path | None, check: bool) -> None:
    """Give ROLE (root, targets, snapshot, timestamp or a distribution) a new key.

    Receivers follow by themselves: the old root signs the new one.
    """
    from ted.trust.anchors import TrustStore

    name = distributor_name(settings, distributor)
    catalog = _catalog(settings, name, working_directory)
    keyid = None if check else catalog.rotate(role)
    if not check:
        TrustStore(settings.config / "trust").import_root(catalog.root_bytes(), name, force=True)
    data = {"changed": True, "role": role, "keyid": keyid, **catalog.describe()}
    done = "would get a new key" if check else f"has a new key {keyid}"
    emit(settings, data, f"{name}: {role} {done}")


@command.command()
@distributor_options
@click.pass_obj
def renew(settings: Settings, distributor: str | None, working_directory: Path | None) -> None:
    """Sign anew what has less than half of its life left (the agent does this by itself)."""
    name = distributor_name(settings, distributor)
    catalog = _catalog(settings, name, working_directory)
    changed = catalog.refresh_timestamp()
    data = {"changed": changed, **catalog.describe()}
    emit(settings, data, f"{name}: {'renewed' if changed else 'nothing due'}")


def _table(roles: list[dict[str, Any]]) -> str:

    rows = [
        [
            role["role"],
            role["version"],
            role["expires_at"][:10],
            "here" if role["private_key_here"] else "elsewhere",
            ", ".join(keyid[:12] for keyid in role["keyids"]),
        ]
        for role in roles
    ]
    return tabulated(rows, headers=["role", "version", "expires", "private key", "key"])
