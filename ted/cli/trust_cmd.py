"""``ted trust``: the Distributors this node believes.

Rules:
 * A root is placed by a person or a play; no node accepts one over the wire.
 * Every command may be repeated; ``--json`` says whether anything changed; ``--check`` changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ted.cli.keys_cmd import catalog_directory, check_option, distributor_name, distributor_options
from ted.cli.main import Commands, Settings, emit, tabulated
from ted.errors import ConfigError, UntrustedDistributorError

if TYPE_CHECKING:
    from ted.trust.anchors import TrustStore


def _store(settings: Settings) -> TrustStore:
    from ted.trust.anchors import TrustStore

    return TrustStore(settings.config / "trust")


def read_input(path: Path, max_bytes: int = 1 << 20) -> bytes:
    """Return the content of ``path``, of standard input for ``-``.

    Raises:
        ConfigError: It cannot be read, or is longer than ``max_bytes``.
    """
    try:
        with click.open_file(str(path), "rb") as file:
            data: bytes = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint="name a file, or -") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: longer than {max_bytes} bytes", hint="is it the right file?")
    return data


@click.group("trust", cls=Commands)
def command() -> None:
    """Import, export, list and remove Distributors' roots."""


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--distributor", metavar="NAME", help="Whose root it must be; by default as it says itself.")
@click.option("--force", is_flag=True, help="Let an older root replace a newer one.")
@check_option
@click.pass_obj
def import_(settings: Settings, file: Path, distributor: str | None, force: bool, check: bool) -> None:
    """Trust the Distributor whose root.json FILE is (- reads standard input)."""
    source = "standard input" if str(file) == "-" else str(file)
    done = _store(settings).import_root(read_input(file), distributor, force=force, check=check, source=source)
    data: dict[str, Any] = {
        "changed": done.changed,
        **done.anchor.to_dict(),
        "former_version": done.former.version if done.former else None,
    }
    word = "already trusted" if not done.changed else "would be trusted" if check else "trusted"
    emit(settings, data, f"{done.anchor.distributor}: {word} (root {done.anchor.version})")


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@distributor_options
@check_option
@click.pass_obj
def export(
    settings: Settings,
    file: Path | None,
    distributor: str | None,
    working_directory: Path | None,
    check: bool,
) -> None:
    """Write a Distributor's newest root.json to FILE, or to standard output."""
    from ted.trust.anchors import describe
    from ted.trust.files import read_bounded, replace_file
    from ted.trust.names import MAX_ROOT_BYTES

    name = distributor_name(settings, distributor)
    root = _newest_root(settings, name, working_directory)
    anchor = describe(name, root)
    if file is None or str(file) == "-":
        data = {"changed": False, **anchor.to_dict(), "root": root.decode()}
        emit(settings, data, root.decode())
        return
    changed = read_bounded(file.resolve(), MAX_ROOT_BYTES) != root
    if changed and not check:
        replace_file(file.resolve(), root)
    data = {"changed": changed, **anchor.to_dict(), "root": root.decode(), "file": str(file)}
    emit(settings, data, f"{name}: root {anchor.version} {'to' if changed else 'is already'} {file}")


def _newest_root(settings: Settings, distributor: str, working: Path | None) -> bytes:
    """Return the root as followed from the trusted one through what the catalog's directory holds."""
    from ted.trust.chain import follow_roots

    anchor = _store(settings).read(distributor)
    if anchor is None:
        raise UntrustedDistributorError(
            f"this node holds no root of Distributor {distributor}",
            hint="on the Distributor itself: ted keys create; elsewhere: ted trust import",
        )
    *_, (_, newest) = follow_roots(catalog_directory(settings, distributor, working), anchor)
    return newest


@command.command("list")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List the Distributors this node trusts."""
    anchors = _store(settings).list()
    rows = [[anchor.distributor, anchor.version, anchor.expires_at[:10], anchor.keyids[0][:12]] for anchor in anchors]
    data = {"changed": False, "distributors": [anchor.to_dict() for anchor in anchors]}
    nothing = "no Distributor is trusted here yet: `ted trust import`, or playbooks/install.yml"
    emit(settings, data, tabulated(rows, headers=["distributor", "root", "expires", "key"]) if rows else nothing)


@command.command()
@click.argument("distributor")
@check_option
@click.pass_obj
def remove(settings: Settings, distributor: str, check: bool) -> None:
    """Trust DISTRIBUTOR no more; what was received of it stays, and is not extracted again."""
    changed = _store(settings).remove(distributor, check=check)
    word = "was not trusted" if not changed else "would be removed" if check else "removed"
    emit(settings, {"changed": changed, "distributor": distributor}, f"{distributor}: {word}")
