"""``ted rollback``: take what was extracted back."""

from __future__ import annotations

import click

from ted.agent.records import open_journal
from ted.cli.common_install import Wanted, answer, failed_row, host_of, named, report, settle
from ted.cli.main import Settings
from ted.config import NodeConfig
from ted.errors import NothingToRollBackError, TedError
from ted.install.rollback import rollback
from ted.topology.names import suggestion


@click.command("rollback")
@click.argument("name", metavar="DISTRIBUTION")
@click.option("--distributor", help="Only of this Distributor.")
@click.option("--revision", help="Back to this revision, not to the one before the installed one.")
@click.option("--check", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--diff", is_flag=True, help="Show each change.")
@click.pass_obj
def command(
    settings: Settings, name: str, distributor: str | None, revision: str | None, check: bool, diff: bool
) -> None:
    """Take DISTRIBUTION back to an earlier revision; before the first one, to what was here before ted."""
    config = NodeConfig.load(settings.config)
    host = host_of(config)
    installed = host.states.all()
    if not any(pair[1] == name and distributor in (None, pair[0]) for pair in installed):
        known = sorted({pair[1] for pair in installed if distributor in (None, pair[0])})
        hint = suggestion(name, known) or f"extracted here: {', '.join(known) or 'nothing yet'}"
        raise NothingToRollBackError(f"{name} was never extracted here", hint=hint)
    each = Wanted(*named(installed, (name,), distributor)[0])
    failures: list[TedError] = []
    journal = open_journal(config)
    try:
        result = rollback(host, each.distributor, each.distribution, revision=revision, check=check, diff=diff)
        report(journal, host, result)
        row = result.to_dict()
    except TedError as error:
        failures.append(error)
        row = failed_row(each, revision, error, check=check)
        if not check and not isinstance(error, NothingToRollBackError):
            journal.note("rollback_failed", error.message, distributor=each.distributor, distribution=name,
                         revision=revision)  # fmt: skip
    finally:
        journal.close()
    if not check:
        settle(config)
    answer(settings, [row], failures, diff=diff)
