"""``ted extract``: apply what was received on this node."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.common_install import (
    Wanted,
    answer,
    begin,
    failed_row,
    host_of,
    report,
    report_failure,
    settle,
    wanted,
)
from ted.cli.main import Settings
from ted.config import NodeConfig
from ted.errors import InstallError, TargetError, TedError, UsageError
from ted.install.extract import ExtractResult, extract
from ted.install.host import Host
from ted.install.paths import keep_freed_memory
from ted.records.journal import Journal


@click.command("extract")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--distributor", help="Only of this Distributor.")
@click.option("--revision", help="This revision, not the newest one that is here; needs one DISTRIBUTION.")
@click.option("--check", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--diff", is_flag=True, help="Show each change.")
@click.option(
    "--force", is_flag=True, help="Compare every byte with the target, and extract what is here only for others."
)
@click.pass_obj
def command(
    settings: Settings,
    names: tuple[str, ...],
    distributor: str | None,
    revision: str | None,
    check: bool,
    diff: bool,
    force: bool,
) -> None:
    """Extract each DISTRIBUTION (default: everything this node subscribes to) in its newest revision here.

    High priority first. What this node only made or passed on for others does not count, even if it is named. Nothing
    is extracted whose signature does not hold. One that fails is undone; the others are extracted all the same.
    """
    keep_freed_memory()
    config = NodeConfig.load(settings.config)
    if revision is not None and len(names) != 1:
        raise UsageError("--revision needs exactly one DISTRIBUTION", hint="name the one it belongs to")
    host = host_of(config)
    journal = open_journal(config)
    rows: list[dict[str, Any]] = []
    failures: list[TedError] = []
    try:
        for each in wanted(settings, config, names, distributor):
            if each.for_others is not None and not force:
                rows.append(_for_others(each, check=check).to_dict())
                continue
            try:
                begin(journal, host, each.distributor, each.distribution, revision or _newest(host, each))
                result = extract(
                    host, each.distributor, each.distribution, revision=revision, newest=each.revision, check=check,
                    diff=diff, force=force,
                )  # fmt: skip
            except TedError as error:
                failures.append(error)
                rows.append(failed_row(each, revision or _newest(host, each), error, check=check))
                if not check:
                    _report_failure(journal, host, each, revision, error)
            else:
                if result.error is not None:
                    failures.append(_told(result.error))
                report(journal, host, result)
                rows.append(result.to_dict())
        if not names and not check:
            host.recover_others([(row["distributor"], row["distribution"]) for row in rows])
    finally:
        journal.close()
    if not check:
        settle(config)
    answer(settings, rows, failures, diff=diff)


def _newest(host: Host, each: Wanted) -> str | None:
    if each.revision is not None:
        return each.revision
    stamps = host.working.received(each.distributor, each.distribution)
    return stamps[-1] if stamps else None


def _for_others(each: Wanted, *, check: bool) -> ExtractResult:
    reason = f"this node {each.for_others} and does not subscribe to it"
    return ExtractResult(each.distributor, each.distribution, None, "skipped", reason=reason, check=check)


def _report_failure(journal: Journal, host: Host, each: Wanted, revision: str | None, error: TedError) -> None:
    if type(error) is not InstallError:  # a plain one means that another process is at it: no news of this one
        report_failure(journal, host, each.distributor, each.distribution, revision or _newest(host, each), error)


def _told(error: dict[str, Any]) -> TargetError:
    return TargetError(error["message"], hint=error["hint"], path=error.get("path"), errno=error.get("errno"))
