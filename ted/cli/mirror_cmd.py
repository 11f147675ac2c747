"""``ted mirror``: a dumb repository, for those whom no agent can reach."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.main import Settings, emit
from ted.cli.progress import human_bytes
from ted.config import NodeConfig
from ted.errors import DigestMismatchError, UnknownNameError, UsageError
from ted.records.states import State
from ted.transfer.mirror import FolderMirror, check_mirror, mirror_at, pull, push, reader
from ted.trust.view import CatalogView


@click.command("mirror")
@click.argument("action", type=click.Choice(["push", "pull", "check"]))
@click.argument("url")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--distributor", help="Whose distributions; default is this node when it is one, else the one trusted.")
@click.option("--check", is_flag=True, help="Say what would be copied; copy nothing.")
@click.pass_obj
def command(
    settings: Settings, action: str, url: str, names: tuple[str, ...], distributor: str | None, check: bool
) -> None:
    """Copy kept revisions to the repository at URL, take the newest from it, or check all of it.

    URL is a folder (a path or file:) or, for pull and check, what a web server shows of one (http:, https:). The
    repository needs no ted and no secret: whoever pulls checks every byte against the Distributor's signature.
    """
    config = NodeConfig.load(settings.config)
    owner = distributor or _default_distributor(config)
    mirror = mirror_at(url)
    if action == "push":
        _push(settings, config, owner, names, mirror, check=check)
        return
    view = CatalogView(owner, config.trust_root(owner), config.working.catalog(owner), reader(mirror, owner),
                       node=config.node)  # fmt: skip
    if action == "pull":
        view.refresh()
        _pull(settings, config, view, names, mirror, check=check)
        return
    if config.distributor and owner == config.node:
        raise UsageError("a Distributor does not check a mirror of itself", hint="check it from a Subscriber")
    view.refresh()
    problems = check_mirror(view, mirror)
    if problems:
        raise DigestMismatchError(f"{mirror}: {len(problems)} problems: {'; '.join(problems[:3])}",
                                  hint="remove the damaged files there and push again")  # fmt: skip
    emit(settings, {"changed": False, "ok": True, "problems": []}, f"{mirror}: every published block is as signed")


def _default_distributor(config: NodeConfig) -> str:
    if config.distributor:
        return config.node
    trusted = sorted(path.parent.name for path in config.config_directory.glob("trust/*/root.json"))
    if len(trusted) != 1:
        known = ", ".join(trusted) or "none is trusted yet"
        raise UsageError("which Distributor?", hint=f"name one with --distributor: {known}")
    return trusted[0]


def _push(settings: Settings, config: NodeConfig, owner: str, names: tuple[str, ...], mirror: Any, *,
          check: bool) -> None:  # fmt: skip
    if not isinstance(mirror, FolderMirror):
        raise UsageError(f"{mirror} cannot be written to", hint="push to the folder that the web server shows")
    known = [name for distributor, name in config.working.distributions() if distributor == owner]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UnknownNameError(f"no distribution {unknown[0]!r} of {owner} is here",
                               hint=f"here are {', '.join(known) or 'none'}")  # fmt: skip
    files = push(config.working, owner, list(names) or known, mirror, check=check)
    total = sum(row["bytes"] for row in files)
    emit(settings, {"changed": bool(files), "files": files, "bytes": total},
         f"{'would copy' if check else 'copied'} {len(files)} files, {human_bytes(total)}, to {mirror}")  # fmt: skip


def _pull(settings: Settings, config: NodeConfig, view: CatalogView, names: tuple[str, ...], mirror: Any, *,
          check: bool) -> None:  # fmt: skip
    rows: list[dict[str, Any]] = []
    journal = open_journal(config)
    try:
        for name in names or view.distributions:
            before = set(config.working.received(view.distributor, name))
            record, count = pull(config.working, view, mirror, name, check=check)
            if record is None:
                raise UnknownNameError(f"{view.distributor} publishes no {name!r} there",
                                       hint=f"it publishes {', '.join(view.distributions)}")  # fmt: skip
            changed = record.revision not in before
            if changed and not check:
                journal.report(view.distributor, name, record.revision, State.RECEIVED, bytes_done=count,
                               bytes_total=count)  # fmt: skip
            rows.append({"distributor": view.distributor, "distribution": name, "revision": record.revision,
                         "changed": changed, "bytes": count, "state": "received"})  # fmt: skip
    finally:
        journal.close()
    text = "\n".join(f"{row['distribution']} {row['revision']}: {human_bytes(row['bytes'])}" for row in rows)
    emit(settings, {"changed": any(row["changed"] for row in rows), "distributions": rows}, text or "nothing is there")
