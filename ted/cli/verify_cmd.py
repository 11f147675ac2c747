"""``ted verify``: re-check what is stored and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ted.agent.ask import call_agent
from ted.cli.common_install import Pair, finish, host_of, named, received
from ted.cli.main import Settings, tabulated, wrapped
from ted.cli.progress import human_bytes
from ted.config import NodeConfig
from ted.errors import DigestMismatchError, DriftError, TedError, TrustError
from ted.install.host import Host
from ted.install.verify import Problem, drop_damaged, repair, verify_installed, verify_patches, verify_stored

_SHOWN = 50
_MEND_WITHIN_S = 3600.0


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--distributor", help="Only of this Distributor.")
@click.option("--stored", is_flag=True, help="Only what is stored: every frame of every revision, and patches.")
@click.option("--installed", is_flag=True, help="Only what is installed: every file of the installed revision.")
@click.option("--repair", "mend", is_flag=True,
              help="Extract again what drifted, fetch again what is stored damaged, remove damaged patches.")
@click.pass_obj
def command(
    settings: Settings, names: tuple[str, ...], distributor: str | None, stored: bool, installed: bool, mend: bool
) -> None:
    """Read everything again and compare it with what was signed; changes nothing unless --repair says so."""
    config = NodeConfig.load(settings.config)
    host = host_of(config)
    both = stored == installed
    problems: list[Problem] = []
    failures: list[TedError] = []
    repaired: list[dict[str, Any]] = []
    unjudged: list[dict[str, Any]] = []
    known = list(dict.fromkeys([*received(host.working), *host.states.all()]))
    for pair in named(known, names, distributor):
        if stored or both:
            damaged = verify_stored(host, *pair)
            if mend and damaged and pair[0] != config.node:
                failures += _fetch_again(config, damaged, repaired)
                damaged = verify_stored(host, *pair)
            problems += damaged
            patches = verify_patches(host, *pair)
            if mend:
                repaired += [_dropped(host, config, patch) for patch in patches]
            else:
                problems += patches
        if not (installed or both):
            continue
        drifted: list[Problem] | None = None
        try:
            drifted = verify_installed(host, *pair)
            if drifted and mend:
                repaired.append(repair(host, *pair).to_dict())
                drifted = verify_installed(host, *pair)
        except TedError as error:
            failures.append(error)
            if drifted is None:
                unjudged.append(_unjudged(pair, error))
        problems += drifted or []
    problem = _failure(problems, host, config.node)
    finish(settings, _data(problems, failures, repaired, unjudged), _text(problems, repaired, unjudged),
           [*failures, *([problem] if problem else [])])  # fmt: skip


def _fetch_again(config: NodeConfig, damaged: list[Problem], repaired: list[dict[str, Any]]) -> list[TedError]:
    """Have the agent fetch what is damaged; note what it did, and return what it could not."""
    failures: list[TedError] = []
    for problem in damaged:
        row = {"distributor": problem.distributor, "distribution": problem.distribution, "revision": problem.revision}
        try:
            done = call_agent(config.working.state, "mend", timeout_s=_MEND_WITHIN_S, **row)
            repaired.append({**row, "where": "stored", "changed": True, **done})
        except TedError as error:
            failures.append(error)
    return failures


def _dropped(host: Host, config: NodeConfig, patch: Problem) -> dict[str, Any]:
    """Remove a damaged patch; on its Distributor the next build makes again the one to the newest revision."""
    again = drop_damaged(host, patch, again=patch.distributor == config.node)
    return {
        "distributor": patch.distributor, "distribution": patch.distribution, "revision": patch.revision,
        "where": "stored", "changed": True, "removed": patch.path, "made_again_by_build": again,
    }  # fmt: skip


def _unjudged(pair: Pair, error: TedError) -> dict[str, Any]:
    distributor, distribution = pair
    return {"distributor": distributor, "distribution": distribution, "where": "installed", "error": error.to_dict()}


def _data(
    problems: list[Problem],
    failures: list[TedError],
    repaired: list[dict[str, Any]],
    unjudged: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "ok": not problems and not failures, "changed": any(row["changed"] for row in repaired),
        "problems": [problem.to_dict() for problem in problems], "repaired": repaired, "unjudged": unjudged,
    }  # fmt: skip


def _failure(problems: list[Problem], host: Host, node: str) -> TedError | None:
    """Return the error the command ends with: what is not trusted first, then what is damaged, then drift."""
    stored = [problem for problem in problems if problem.where == "stored"]
    stored.sort(key=lambda problem: problem.patch_from is not None)  # what lacks somebody first
    for problem in stored:
        if isinstance(problem.cause, TrustError):
            return type(problem.cause)(f"{problem.path} does not pass: {problem.what}" + _more(stored),
                                       hint=problem.cause.hint)  # fmt: skip
    if stored:
        first = stored[0]
        mend = "`ted verify --stored --repair` fetches it again"
        if first.patch_from is not None:
            mend = "`ted verify --stored --repair` removes this patch; what it carries is then sent as blocks"
        elif first.distributor == node:  # nobody to ask: it is made here
            mend = _made_anew(stored, host, first)
        return DigestMismatchError(f"{first.path} does not pass: {first.what}" + _more(stored), hint=mend)
    if problems:
        return DriftError(
            f"{problems[0].path}: {problems[0].what}" + _more(problems), hint="`ted verify --repair` extracts it again"
        )
    return None


def _made_anew(stored: list[Problem], host: Host, first: Problem) -> str:
    """Return what mends damage on the Distributor: nothing does where the newest revision is sound."""
    pair = (first.distributor, first.distribution)
    newest = host.working.revisions(*pair)[-1]
    if any((*pair, newest) == (each.distributor, each.distribution, each.revision) for each in stored):
        return f"`ted build --force {first.distribution}` packs it anew, in a new revision"
    return f"the newest revision, {newest}, is sound and is what is sent; max_revisions removes older ones in time"


def _more(problems: list[Problem]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""


def _repaired(row: dict[str, Any]) -> str:
    if "removed" in row:
        instead = "; `ted build` makes it again" if row["made_again_by_build"] else "; blocks are sent instead"
        return f"{row['distribution']} {row['revision']}: removed the damaged patch {row['removed']}{instead}"
    if row.get("where") == "stored":
        what = f"{human_bytes(row['bytes'])} fetched again from {row['from']}" if row["bytes"] else "no content lacked"
        return f"{row['distribution']} {row['revision']}: mended, {what}"
    return f"{row['distribution']}: repaired"


def _tables(problems: list[Problem]) -> list[str]:
    """Return tables that fit a terminal: what is stored is told in words, which stand below its row."""
    stored = [problem for problem in problems if problem.where == "stored"]
    drift = [[p.distribution, p.revision, p.where, p.path, p.what] for p in problems if p.where != "stored"]
    headers = ["distribution", "revision", "where", "path"]
    tables = [tabulated(drift, [*headers, "what"])] if drift else []
    if stored:
        rows = [[p.distribution, p.revision, p.where, _revision_directory(p)] for p in stored]
        below = [wrapped(p.what.replace(f"{_revision_directory(p)}/", "")) for p in stored]
        tables.append(tabulated(rows, headers, below))
    return tables


def _revision_directory(stored: Problem) -> str:
    return str(Path(stored.path).parent) if stored.patch_from is not None else stored.path


def _text(problems: list[Problem], repaired: list[dict[str, Any]], unjudged: list[dict[str, Any]]) -> str:
    lines = [_repaired(row) for row in repaired if row["changed"]]
    lines += [
        f"{row['distribution']}: what is installed cannot be judged: {row['error']['message']}" for row in unjudged
    ]
    lines += _tables(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        lines.append(f"... and {len(problems) - _SHOWN} more (--json has them)")
    if unjudged and not problems:
        lines.append("whatever else was looked at is as it was signed")
    return "\n".join(lines) or "everything is as it was signed"
