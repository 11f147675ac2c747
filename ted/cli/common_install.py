"""What ``extract``, ``rollback`` and ``verify`` share: this node, which distributions, one answer, one report."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import ted
from ted.cli.common import topology_if_any
from ted.cli.main import Settings, emit, tabulated
from ted.config import NodeConfig
from ted.content.record import PackRef
from ted.content.working import WorkingDirectory
from ted.errors import FormatError, RepositoryError, TedError, UnknownNameError, UsageError
from ted.install.extract import ExtractResult
from ted.install.host import Host
from ted.install.state import FAILED
from ted.install.variables import Variables, predefined
from ted.records.journal import Journal
from ted.records.states import State, said
from ted.topology.names import suggestion

_PRIORITIES = {"high": 0, "medium": 1, "low": 2}
_SHOWN_CHANGES = 200
_NOTED_ITEMS = 200


def host_of(config: NodeConfig) -> Host:
    """Return this node as an installer sees it: its variables, and trust in the Distributors whose root it holds."""
    from ted.content.patch.kept import patch_ref
    from ted.trust.view import CatalogView

    working = config.working
    views: dict[str, CatalogView] = {}

    def view_of(distributor: str) -> CatalogView:
        view = views.get(distributor)
        if view is None:
            root = trusted_root(config, distributor)
            view = views[distributor] = CatalogView(distributor, root, working.catalog(distributor), node=config.node)
        return view

    def verify_record(distributor: str, distribution: str, stamp: str, data: bytes) -> None:
        if view_of(distributor).record(distribution, stamp) != data:
            raise FormatError(f"{distribution} {stamp}: its record changed while it was verified", hint="extract again")

    def signed_patches(distributor: str, distribution: str, stamp: str) -> dict[str, PackRef]:
        told = view_of(distributor).patches(distribution, stamp)
        return {before: patch_ref(stamp, before, patch.bytes, patch.root) for before, patch in told.items()}

    variables = Variables(
        predefined(
            node=config.node, config_directory=config.config_directory, working_directory=config.working_directory,
            address=config.address, realm=_realm(config),
        ),
        config.variables,
    )  # fmt: skip
    # Without an environment of its own ted shares its prefix with the whole machine.
    program = sys.prefix if sys.prefix != sys.base_prefix else str(Path(ted.__file__).parent)
    guarded = (str(config.working_directory), str(config.config_directory), program)
    return Host(working, verify_record, variables, guarded, signed_patches=signed_patches)


def trusted_root(config: NodeConfig, distributor: str) -> Path:
    """Return the trust anchor of a Distributor; a Distributor trusts its own catalog."""
    placed = config.trust_root(distributor)
    if distributor == config.node and not placed.is_file():
        return config.working.catalog(distributor) / "root.json"
    return placed


def _realm(config: NodeConfig) -> str | None:
    """Return the name of the realm this node's certificate belongs to."""
    path = config.realm_directory / "ca.pem"
    if not path.is_file():
        return None
    import ssl  # a third of what cryptography's reader of certificates takes to import

    authorities = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ValueError, OSError):  # an SSLError is an OSError
        authorities.load_verify_locations(path)
        for certificate in authorities.get_ca_certs():
            subject: Any = certificate["subject"]  # ((("commonName", "acme"),), ...)
            return dict(pair for named in subject for pair in named).get("commonName")
    return None


# --- which distributions -------------------------------------------------------------------------------------------


Pair = tuple[str, str]
"""(distributor, distribution)."""


@dataclass(frozen=True)
class Wanted:
    """A distribution to work on.

    ``for_others``: why it is here though this node does not subscribe to it; ``None``: it does.
    ``revision``: the newest that is here for this node; ``None``: the newest that is here.
    """

    distributor: str
    distribution: str
    for_others: str | None = None
    revision: str | None = None


def named(known: Iterable[Pair], names: tuple[str, ...], distributor: str | None) -> list[Pair]:
    """Return those of ``known`` that are named; all of them when no name is given.

    Args:
        known: (distributor, distribution) of what there is.
        names: As given.
        distributor: Only of this one.

    Raises:
        UnknownNameError: A name is not among ``known``.
        UsageError: A name is known of more than one Distributor.
    """
    pairs = [pair for pair in known if distributor in (None, pair[0])]
    for name in names:
        owners = [pair[0] for pair in pairs if pair[1] == name]
        if not owners:
            raise UnknownNameError(
                f"nothing of {name}" + (f" of {distributor}" if distributor else "") + " is here",
                hint=suggestion(name, {pair[1] for pair in pairs})
                or "`ted status` lists what is, `ted receive` fetches",
            )
        if len(owners) > 1:
            raise UsageError(f"{name} is known of {' and '.join(owners)}", hint="choose one with --distributor")
    return [pair for pair in pairs if not names or pair[1] in names]


def wanted(settings: Settings, config: NodeConfig, names: tuple[str, ...], distributor: str | None) -> list[Wanted]:
    """Return what to extract: what is named, or everything here that this node subscribes to; by priority.

    What a Distributor made itself it subscribes to if it is a host of one of its channels.
    Of what others made, a revision that this node only passed on (a pilot for others, say) is none of its own.

    Raises:
        UnknownNameError: A name is not here.
        UsageError: A name is here of more than one Distributor.
    """
    own = _own(settings, config)
    found = []
    for pair in named(received(config.working), names, distributor):
        if pair[0] == config.node and pair[1] in own:
            found.append(Wanted(*pair))
        elif pair[0] != config.node and (revision := _for_this_node(config.working, pair)) is not None:
            found.append(Wanted(*pair, revision=revision))
        elif names:
            found.append(Wanted(*pair, for_others="made it" if pair[0] == config.node else "passes it on"))
    return found


def _own(settings: Settings, config: NodeConfig) -> set[str]:
    """Return the distributions of this Distributor that it subscribes to itself."""
    topology = topology_if_any(settings) if config.distributor else None
    if topology is None or config.node not in topology.distributors:
        return set()
    channels = {name for name, channel in topology.channels.items() if config.node in channel.members}
    own = topology.distributor(config.node).distributions
    return {name for name, distribution in own.items() if channels & set(distribution.channels)}


def _for_this_node(working: WorkingDirectory, pair: Pair) -> str | None:
    """Return the newest revision here that was sent to this node itself, by any slip, or that it pulled."""
    stamps = (stamp for stamp in reversed(working.received(*pair)) if working.is_target(*pair, stamp))
    return next(stamps, None)


def received(working: WorkingDirectory) -> list[tuple[str, str]]:
    """Return what is here as a whole in some revision: high priority first, then by arrival."""
    found = []
    for distributor, distribution in working.distributions():
        stamps = working.received(distributor, distribution)
        if not stamps:
            continue
        priority = None
        with suppress(RepositoryError, UnknownNameError):
            priority = working.record(distributor, distribution, stamps[-1]).settings.get("priority")
        found.append((_PRIORITIES.get(str(priority), 1), stamps[-1], distributor, distribution))
    return [(distributor, distribution) for _, _, distributor, distribution in sorted(found)]


# --- records -------------------------------------------------------------------------------------------------------


def begin(journal: Journal, host: Host, distributor: str, distribution: str, revision: str | None) -> None:
    """Have the first thing an extraction writes be on record: this node is extracting."""
    reported = False

    def on_act(_phase: str, _number: int) -> None:
        nonlocal reported
        if not reported:
            reported = True
            journal.report(distributor, distribution, revision, State.EXTRACTING)

    host.on_act = on_act


def report(journal: Journal, host: Host, result: ExtractResult) -> None:
    """Put what was done on record, and on its way up; what is on record already is not told again."""
    if result.check:
        return
    error = result.error["message"] if result.error else result.reason if result.state == State.SKIPPED else None
    _note_items(journal, result)
    rows = journal.states(node=journal.node, distributor=result.distributor, distribution=result.distribution)
    held = rows[0] if rows else None
    if held is None or result.changed or (held.revision, held.state, held.error) != (
        result.revision, result.state, error,
    ):  # fmt: skip
        journal.report(result.distributor, result.distribution, result.revision, State(result.state), error=error,
                       installed=_in_service(host, result.distributor, result.distribution))  # fmt: skip


def _in_service(host: Host, distributor: str, distribution: str) -> str | None:
    """Return the revision installed here; ``None``: not known, or some of the newest was not done.

    Then what is on record stays: a failed step may be of a newer revision, or of the installed one done again.
    """
    with suppress(TedError):
        newest = host.states.load(distributor, distribution).newest
        return newest.revision if newest is not None and newest.state != FAILED else None
    return None


def _note_items(journal: Journal, result: ExtractResult) -> None:
    """Put what became of things that are no paths among the events; what stayed as it was is not told."""
    for item in result.things[:_NOTED_ITEMS] if result.changed else []:
        if item["before"] != item["after"]:
            message = f"{item['name']}: {item['what']}, {item['before'] or 'none'} -> {item['after'] or 'none'}"
            journal.note("item", message, distributor=result.distributor, distribution=result.distribution,
                         revision=result.revision)  # fmt: skip


def settle(config: NodeConfig) -> None:
    """Wait a moment until those above know what was reported; without an agent it waits for the next one's start."""
    from ted.agent.ask import call_agent

    with suppress(TedError):
        call_agent(config.working.state, "settle", timeout_s=10)


def report_failure(
    journal: Journal, host: Host, distributor: str, distribution: str, revision: str | None, error: TedError
) -> None:
    """Put a failure on record, and on its way up."""
    journal.report(distributor, distribution, revision, State.FAILED, error=error.message,
                   installed=_in_service(host, distributor, distribution))  # fmt: skip


# --- the answer ----------------------------------------------------------------------------------------------------


def failed_row(wanted_: Wanted, revision: str | None, error: TedError, *, check: bool) -> dict[str, Any]:
    """Return the row of a distribution that could not be extracted or rolled back at all."""
    result = ExtractResult(wanted_.distributor, wanted_.distribution, revision, "failed", check=check)
    result.error = error.to_dict()
    return result.to_dict()


def answer(settings: Settings, rows: list[dict[str, Any]], failures: list[TedError], *, diff: bool) -> None:
    """Print the rows, then end with the exit code of the first failure."""
    for row in rows:
        for warning in row["warnings"]:
            click.echo(f"ted: warning: {row['distribution']}: {warning}", err=True)
        if row["hint"]:
            click.echo(f"ted: warning: {row['distribution']}: skipped, {row['reason']}\n     {row['hint']}", err=True)
    data: dict[str, Any] = {"changed": any(row["changed"] for row in rows), "distributions": rows}
    text = "" if settings.as_json else _table(rows) + (_changes(rows) if diff else "")
    finish(settings, data, text, failures)


def finish(settings: Settings, data: dict[str, Any], text: str, failures: list[TedError]) -> None:
    """Print one document, the first failure in it, and end with its exit code."""
    if failures:
        data["error"] = failures[0].to_dict()
    emit(settings, data, text)
    if not failures:
        return
    for failure in failures:
        if settings.verbose:
            click.echo("".join(traceback.format_exception(failure)), err=True)
        click.echo(f"ted: {failure.message}" + (f"\n     {failure.hint}" if failure.hint else ""), err=True)
    sys.exit(failures[0].exit_code)


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "nothing is here that this node subscribes to"
    table = [
        [row["distributor"], row["distribution"], row["revision"] or "-", said(row["state"], row["revision"]),
         "yes" if row["changed"] else "no", _actions(row)] for row in rows
    ]  # fmt: skip
    changed = "would change" if rows[0]["check"] else "changed"
    return tabulated(table, headers=["distributor", "distribution", "revision", "state", changed, "what"])


def _actions(row: dict[str, Any]) -> str:
    if row["reason"]:
        return str(row["reason"])
    return ", ".join(counted(count, name) for name, count in sorted(row["actions"].items()) if count)


def counted(count: int, name: str) -> str:
    """Return a count of actions in words: ``1 directory``, ``2 changes of attributes``."""
    one, more = _COUNTED.get(name, (name, name))
    return f"{count} {one if count == 1 else more}"


_COUNTED = {
    "attributes": ("change of attributes", "changes of attributes"), "directories": ("directory", "directories"),
    "commands": ("command", "commands"),
}  # fmt: skip


def _changes(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for change in row["diff"][:_SHOWN_CHANGES]:
            lines.append(f"{change['change']}: {change['path']}")
            lines += [f"  - {change['before']}"] if change["before"] else []
            lines += [f"  + {change['after']}"] if change["after"] else []
        if len(row["diff"]) > _SHOWN_CHANGES:
            lines.append(f"... and {len(row['diff']) - _SHOWN_CHANGES} more (--json has them)")
    return "\n" + "\n".join(lines) if lines else ""
