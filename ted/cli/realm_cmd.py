"""``ted realm``: the authority that says which machine is which node.

Rules:
 * A node's key never leaves it: ``request`` there, ``issue --csr`` where the authority is.
 * Every command may be repeated; ``--json`` says whether anything changed; ``--check`` changes nothing.
 * Private keys are never printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ted.cli.keys_cmd import check_option
from ted.cli.main import Commands, Settings, emit
from ted.cli.trust_cmd import read_input

if TYPE_CHECKING:
    from ted.trust.realm import RealmAuthority

_addresses_option = click.option(
    "--address", "addresses", multiple=True, metavar="A", help="A host name or IP address; may be repeated."
)


def _authority(settings: Settings) -> RealmAuthority:
    from ted.trust.realm import RealmAuthority

    return RealmAuthority(settings.config / "authority")


@click.group("realm", cls=Commands)
def command() -> None:
    """Make the realm's authority; request and issue nodes' certificates."""


@command.command()
@click.argument("name")
@check_option
@click.pass_obj
def create(settings: Settings, name: str, check: bool) -> None:
    """Make the authority of realm NAME on this machine."""
    authority = _authority(settings)
    changed = authority.create(name, check=check)
    certificate = authority.certificate().decode() if authority.exists() else None
    word = "already there" if not changed else "would be made" if check else "made"
    emit(settings, {"changed": changed, "realm": name, "ca": certificate}, f"realm {name}: {word}")


@command.command()
@click.argument("node")
@_addresses_option
@check_option
@click.pass_obj
def request(settings: Settings, node: str, addresses: tuple[str, ...], check: bool) -> None:
    """Make this node's key and a request (realm/node.csr) to be certified as NODE."""
    from ted.trust.realm import NodeIdentity

    identity = NodeIdentity(settings.config / "realm")
    made = identity.request(node, addresses, check=check)
    data = {
        "changed": made.changed,
        "node": node,
        "csr": None if check and made.changed else made.csr.decode(),
        "file": str(identity.directory / "node.csr"),
    }
    word = "already there" if not made.changed else "would be made" if check else "made"
    emit(settings, data, f"{node}: request {word}: {data['file']}")


@command.command()
@click.argument("node")
@_addresses_option
@click.option(
    "--csr",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The node's request (- reads standard input); without it a key is made here.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where to; by default authority/issued/NODE below the configuration directory.",
)
@check_option
@click.pass_obj
def issue(
    settings: Settings,
    node: str,
    addresses: tuple[str, ...],
    csr: Path | None,
    out: Path | None,
    check: bool,
) -> None:  # fmt: skip
    """Issue NODE's certificate, valid for 825 days; the same again while that one still serves."""
    authority = _authority(settings)
    if csr is None:
        issued = authority.issue(node, addresses, into=out, check=check)
    else:
        given = addresses or None
        issued = authority.issue_from_request(node, read_input(csr), given, into=out, check=check)
    pending = check and issued.changed
    data = {
        "changed": issued.changed,
        "node": node,
        "addresses": list(issued.addresses),
        "expires_at": issued.expires_at.isoformat(),
        "certificate": None if pending else issued.certificate.decode(),
        "ca": issued.authority.decode(),
        "directory": str(out or authority.directory / "issued" / node),
    }
    word = "still serves" if not issued.changed else "would be issued" if check else "issued"
    emit(settings, data, f"{node}: certificate {word}, until {issued.expires_at:%Y-%m-%d}: {data['directory']}")


@command.command()
@click.pass_obj
def export(settings: Settings) -> None:
    """Print the authority's certificate: realm/ca.pem of every node."""
    from ted.errors import ConfigError
    from ted.trust.files import read_bounded

    authority = _authority(settings)
    held = None if authority.exists() else read_bounded(settings.config / "realm" / "ca.pem", 64 << 10)
    try:
        pem = held or authority.certificate()
    except ConfigError:
        raise ConfigError(
            f"{settings.config}: neither a realm authority nor a node's ca.pem",
            hint="ted realm create NAME, or call it where the authority is",
        ) from None
    emit(settings, {"changed": False, "ca": pem.decode()}, pem.decode().rstrip("\n"))
