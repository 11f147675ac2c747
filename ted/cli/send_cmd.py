"""``ted send``: a built revision goes down the tree.

A play looks at its sends by ``--watch`` every few seconds, so what that does not need is loaded where it is needed.
"""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.common import topology_of
from ted.cli.main import Settings, emit, tabulated
from ted.cli.progress import ProgressLines, human_bytes, progress_bar
from ted.config import NodeConfig
from ted.errors import ConfigError, IncompleteError, UnknownNameError, UsageError, WindowClosedError
from ted.records.journal import Journal
from ted.records.sends import send_result
from ted.records.states import NOT_ASKED, State
from ted.topology.schedule import parse_end

FIRST_POLLS_S, POLL_S = (0.02, 0.04, 0.08), 0.2
"""Where nobody lacks anything a send is done at once."""
SHOWN_CAUSES = 5
_WAITING = {State.PENDING, State.RECEIVING}


@click.command("send")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--channel", help="Only this channel; default is every channel of the distributions.")
@click.option("--limit", help="Only these subscribers, separated by commas.")
@click.option("--revision", help="This revision and not the newest; with one DISTRIBUTION.")
@click.option("--check", is_flag=True, help="Show the lines and their bytes; send nothing.")
@click.option("--no-wait", is_flag=True,
              help="Return when the send has begun, or --timeout later; what is not done by then is no failure.")
@click.option("--timeout", "timeout_s", type=float, default=None,
              help="Seconds to wait for the last receiver; default: until every one has ended, "
                   "with --watch 0.")  # fmt: skip
@click.option("--until", metavar="TIME",
              help="End of the send's window: a time of day (05:00), a duration (2h) or a date and time. What is not "
                   "received by then waits for the next send, and goes on where it stopped.")  # fmt: skip
@click.option("--watch", metavar="ID", multiple=True,
              help="Send nothing; show how far the send ID is. May be repeated.")  # fmt: skip
@click.pass_obj
def command(
    settings: Settings, names: tuple[str, ...], channel: str | None, limit: str | None, revision: str | None,
    check: bool, no_wait: bool, timeout_s: float | None, until: str | None,
    watch: tuple[str, ...],
) -> None:  # fmt: skip
    """Send the newest revision of each DISTRIBUTION (default: of all) to the subscribers of its channels.

    Every line carries one copy. Runs on the Distributor, whose agent does the work; ends when every receiver
    has the revision or has failed. Without a terminal it says every 30 s on standard error how far it is and whom it
    waits for; with --json nothing. `ted report sends` has the ID for --watch.
    """
    config = NodeConfig.load(settings.config)
    if revision and len(names) != 1:
        raise UsageError("--revision needs exactly one DISTRIBUTION")
    journal = open_journal(config)
    try:
        if watch:
            _show_watched(settings, _follow(settings, journal, list(watch), timeout_s or 0))
            return
        if not config.distributor:
            raise ConfigError(f"{config.node} is no Distributor",
                              hint="only hosts of the group `distributors` send")  # fmt: skip
        from ted.agent.ask import call_agent

        targets = [name.strip() for name in limit.split(",") if name.strip()] if limit else None
        here = datetime.now().astimezone().replace(tzinfo=None)  # what is summer's time now may be winter's at the end
        ends_at = None if until is None else parse_end(until, here)
        if ends_at is not None:
            click.echo(f"the window of this send ends at {_local(ends_at)}", err=True)
        if check:
            _show(settings, _planned(settings, config, journal, names, channel, targets, revision), ends_at)
            return
        if settings.inventory_on_stdin:
            raise UsageError("an inventory on standard input foretells only: the agent sends by one that stays",
                             hint="name a file with --inventory, or add --check")  # fmt: skip
        inventory = None if settings.inventory is None else str(Path(settings.inventory).resolve())
        ids = call_agent(config.working.state, "send", names=names, channel=channel, limit=targets,
                         revision=revision, inventory=inventory,
                         ends_at=None if ends_at is None else ends_at.isoformat())["sends"]  # fmt: skip
        results = _follow(settings, journal, ids, (timeout_s or 0) if no_wait else timeout_s)
        error = None if no_wait else _incomplete(results, ends_at)
        if error is None or not settings.as_json:
            _show(settings, results, ends_at)
        _tell_unasked(settings, results)
        if error is not None:
            error.data = _data(results, ends_at)
            raise error
    finally:
        journal.close()


def _show_watched(settings: Settings, results: list[dict[str, Any]]) -> None:
    """Show what is looked at again: why somebody was left without it as well, which is no failure of the look."""
    _show(settings, results)
    _tell_unasked(settings, results)
    error = _incomplete([result for result in results if result["done"]], None)
    if error is not None and not settings.as_json:
        click.echo(f"ted: {error.message}\n     {error.hint}", err=True)


def _planned(
    settings: Settings, config: NodeConfig, journal: Journal, names: tuple[str, ...], channel: str | None,
    targets: list[str] | None, revision: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    from ted.agent.plan import plan_bytes, plan_result, plan_sends, refuse_strangers

    topology = topology_of(settings)
    if settings.inventory is None:
        refuse_strangers(topology, config.node, targets)
    plans = plan_sends(topology, config.working, config.node,
                       names=names, channel=channel, limit=targets, revision=revision)  # fmt: skip
    return [plan_result(plan, plan_bytes(plan, journal, config.working), journal) for plan in plans]


def _follow(
    settings: Settings, journal: Journal, sends: list[str], timeout_s: float | None
) -> list[dict[str, Any]]:
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    lines = ProgressLines(as_json=settings.as_json)
    pauses_s = itertools.chain(FIRST_POLLS_S, itertools.repeat(POLL_S))
    with progress_bar(as_json=settings.as_json) as bar:
        tasks = {} if bar is None else {send: bar.add_task(send, total=None) for send in sends}
        while True:
            results = [_result(journal, send) for send in sends]
            if bar is not None:
                for result in results:
                    bar.update(tasks[result["send"]], description=_how_far(result), completed=result["bytes"],
                               total=result["bytes_total"] or None)  # fmt: skip
            if all(result["done"] for result in results):
                return results
            if _is_over(deadline_s):
                return results
            if lines.due():
                lines.say("\n".join(
                    f"{_how_far(result)} done, {human_bytes(result['bytes'])} of {human_bytes(result['bytes_total'])}"
                    f"{_waits_for(result)}" for result in results if not result["done"]
                ))  # fmt: skip
            time.sleep(next(pauses_s))
            while bar is None and journal.are_open(sends) and not lines.due() and not _is_over(deadline_s):
                time.sleep(next(pauses_s))  # nobody looks, and all receivers are many rows


def _how_far(result: dict[str, Any]) -> str:
    ended = sum(state not in _WAITING for state in result["states"].values())
    return f"{result['distribution']} to {result['channel']}: {ended} of {len(result['states'])}"


def _waits_for(result: dict[str, Any]) -> str:
    """Return whom the send waits for and why, nothing if nobody is in its way: who lies behind another is left out."""
    errors = result["errors"]
    waiting = {node for node in errors if result["states"][node] in _WAITING}
    senders = {edge["receiver"]: edge["sender"] for edge in result["edges"]}
    causes = {node: errors[node] for node in senders if node in waiting and senders[node] not in waiting}
    if not causes:
        return ""
    node, cause = next(iter(causes.items()))
    named = cause if cause.startswith((f"{node} ", f"{node}:")) else f"{node}: {cause}"
    return f"; waiting for {named}" + (f", and for {len(causes) - 1} more" if len(causes) > 1 else "")


def _is_over(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() > deadline_s


def _result(journal: Journal, send: str) -> dict[str, Any]:
    found = journal.send(send)
    if found is None:
        raise UnknownNameError(f"no send {send!r} is on record here", hint="`ted report sends` lists them")
    return send_result(found)


def _local(moment: datetime) -> str:
    """Return a moment as the clock on this machine's wall shows it, with its distance from UTC."""
    here = moment.astimezone()
    return f"{here:%Y-%m-%d %H:%M:%S} (UTC{here.isoformat()[-6:]})"


def _incomplete(results: list[dict[str, Any]], ends_at: datetime | None) -> IncompleteError | None:
    """Return the error for targets without their revision: who lacks what, by cause."""
    causes = _causes(results, "incomplete")
    hosts = {host for result in results for host in result["incomplete"]}
    if not hosts:
        return None
    if ends_at is not None and all(WindowClosedError.says in cause for cause in causes):
        who = [name for names in causes.values() for name in names]
        return IncompleteError(
            f"{WindowClosedError.says} {_local(ends_at)}; without their revision are still {_some(who)}",
            hint="nothing failed: what came stays, and the next `ted send` goes on from there",
        )
    nodes = "1 receiver is" if len(hosts) == 1 else f"{len(hosts)} receivers are"
    return IncompleteError(f"{nodes} without the revision:{_shown(causes)}",
                           hint=f"{_whats_next(results)}; see `ted tree`")  # fmt: skip


def _whats_next(results: list[dict[str, Any]]) -> str:
    """Return what to do about targets that lack it: mend what ended without them, follow what still goes on."""
    lacking = [(result, {result["states"][host] for host in result["incomplete"]}) for result in results]
    advice = []
    if any(states and (result["done"] or states - _WAITING) for result, states in lacking):
        advice.append("send again when that is mended: what came is kept")
    if going := [result["send"] for result, states in lacking if states & _WAITING and not result["done"]]:
        looks = " ".join(f"--watch {send}" for send in going)
        advice.append(f"what waits goes on by itself: `ted send {looks}` tells how far it is")
    return "; ".join(advice)


def _tell_unasked(settings: Settings, results: list[dict[str, Any]]) -> None:
    """Say who counts by what it said before, since it cannot be asked: with --json ``unasked`` tells."""
    hosts = {host for result in results for host in result["unasked"]}
    if hosts and not settings.as_json:
        nodes = "1 receiver" if len(hosts) == 1 else f"{len(hosts)} receivers"
        click.echo(f"ted: warning: {nodes} could not be asked, and had the revision when last heard of:"
                   f"{_shown(_causes(results, 'unasked'))}", err=True)  # fmt: skip


def _causes(results: list[dict[str, Any]], of: str) -> dict[str, list[str]]:
    """Return, by cause, the receivers that the key ``of`` names: ``HOST (DISTRIBUTION)``."""
    causes: dict[str, list[str]] = {}
    for result in results:
        for host in result[of]:
            text = result["errors"].get(host) or f"still {result['states'][host]}"
            who = causes.setdefault(text.removeprefix(NOT_ASKED).removeprefix(f"{host}: "), [])
            who.append(f"{host} ({result['distribution']})")
    return causes


def _shown(causes: dict[str, list[str]]) -> str:
    shown = [f"\n  {_some(who)}: {text}" for text, who in list(causes.items())[:SHOWN_CAUSES]]
    if len(causes) > SHOWN_CAUSES:
        shown.append(f"\n  and {len(causes) - SHOWN_CAUSES} more causes: `ted report failures`")
    return "".join(shown)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _data(results: list[dict[str, Any]], ends_at: datetime | None = None) -> dict[str, Any]:
    window = {} if ends_at is None else {"ends_at": ends_at.isoformat(timespec="seconds")}
    return {"changed": any(result["changed"] for result in results), **window, "sends": results}


def _word(result: dict[str, Any], node: str) -> str:
    """Return the state of a receiver as a table shows it: one that ran out of time did not fail."""
    if WindowClosedError.says in result.get("errors", {}).get(node, "") and node not in result["unasked"]:
        return "window closed"
    return str(result["states"][node])


def _show(settings: Settings, results: list[dict[str, Any]], ends_at: datetime | None = None) -> None:
    rows = [
        [result["distribution"], result["channel"], result["revision"], edge["sender"], edge["receiver"],
         human_bytes(edge["bytes"]), _word(result, edge["receiver"])]
        for result in results for edge in result["edges"]
    ]  # fmt: skip
    table = tabulated(rows, headers=["distribution", "channel", "revision", "from", "to", "bytes", "state"])
    nothing = "nothing to send: no active distribution is on an active channel"
    looks = [f"`ted send --watch {result['send']}` tells how far {result['distribution']} to {result['channel']} is"
             for result in results if result.get("send") and not result["done"]]  # fmt: skip
    emit(settings, _data(results, ends_at), "\n".join([table, *looks]) if rows else nothing)
