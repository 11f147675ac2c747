"""Do what a plan says, and take it back: in a process of its own that ted's transaction runs.

Rules:
 * The plan lies beside the undo log, with the packages that come and those that go. It is not written to again.
 * Going forward: only if what is touched is as it was planned for; and in the end everything is as foretold, or it
   failed. Then the packages that came are not needed any more.
 * Going back: from wherever the machine is (halfway, after a kill of anything, or changed by others since), to exactly
   the versions that were there; what was there in part only may have become whole. Done again, it changes nothing.
 * One at a time: the lock is inherited by the package manager's programs, so whoever comes later waits until those
   that a kill left behind are done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ted.errors import TargetError, TedError
from ted_plugins.packages.deb import Deb
from ted_plugins.packages.manager import Act, Flags, Manager, Plan
from ted_plugins.packages.model import Package
from ted_plugins.packages.rpm import Rpm

PLAN = "plan.json"
_BEGAN, _DONE, _LOCK = "began", "done", "lock"
_WAIT_S, _POLL_S = 3600.0, 0.1
MANAGERS: dict[str, Callable[[Flags], Manager]] = {"rpm": Rpm, "deb": Deb}


def main(words: list[str]) -> int:
    """Be the program: ``forward`` or ``back``, and the plan. Exit code 1 when it failed, with one line why."""
    try:
        way = {"forward": forward, "back": back}[words[0]]
        directory = Path(words[1]).parent
        hold = _locked(directory)
        plan = Plan.from_dict(json.loads((directory / PLAN).read_bytes()))
        way(directory, plan, MANAGERS[plan.manager](plan.flags), hold)
    except TedError as error:
        print(error.message + (f"; {error.hint}" if error.hint else ""), file=sys.stderr)  # noqa: T201 -- a program's word
        return 1
    return 0


def forward(directory: Path, plan: Plan, manager: Manager, hold: int) -> None:
    """Install and erase.

    Raises:
        TargetError: Something is not as it was planned for, or the package manager failed.
    """
    names = _touched(plan)
    if (now := _of(names, manager)) != set(plan.before):
        raise TargetError(f"packages changed since they were looked at: {_words(now ^ set(plan.before))}",
                          hint="extract again")  # fmt: skip
    _mark(directory / _BEGAN)
    manager.perform(_here(directory, plan.act), hold=hold)
    now = _of(names, manager)
    if now != set(plan.after):
        raise TargetError(f"the package manager did not do what it foretold: {_words(now ^ set(plan.after))}")
    _mark(directory / _DONE)
    shutil.rmtree(directory / "new", ignore_errors=True)


def back(directory: Path, plan: Plan, manager: Manager, hold: int) -> None:
    """Go back to the versions of before.

    Raises:
        TargetError: It did not come to that; what is in the way is named, and it can be tried again.
    """
    if not (directory / _BEGAN).exists():
        return
    names, wanted = _touched(plan), set(plan.before)
    old = [(package, str(directory / place)) for package, place in plan.old]
    cut = not (directory / _DONE).exists()
    missing, surplus = _differences(wanted, _of(names, manager))
    come = tuple((package, path) for package, path in old if cut or package in missing)
    go = tuple(sorted(surplus))
    if come or go:
        again = [package for package, _ in come] if cut else []
        manager.restore(Act(come, go), again=again, traceless=plan.traceless, hold=hold)
    missing, surplus = _differences(wanted, _of(names, manager))
    if missing or surplus:
        raise TargetError(
            f"not all packages are back: {_words(missing | surplus)}", hint="see what it says, and try again"
        )


def _differences(wanted: set[Package], now: set[Package]) -> tuple[set[Package], set[Package]]:
    """Return what is not there, and what is there and should not be."""
    whole = {package.whole() for package in wanted}
    missing = {package for package in wanted if not {package, package.whole()} & now}
    return missing, now - wanted - whole


def _touched(plan: Plan) -> set[str]:
    return {package.name for package in (*plan.before, *plan.after)}


def _of(names: set[str], manager: Manager) -> set[Package]:
    return {package for package in manager.installed() if package.name in names}


def _here(directory: Path, act: Act) -> Act:
    return Act(tuple((package, str(directory / place)) for package, place in act.install), act.erase, act.steps)


def _words(packages: Iterable[Package]) -> str:
    return ", ".join(map(str, sorted(packages)))


def _mark(path: Path) -> None:
    with open(path, "wb") as file:
        os.fsync(file.fileno())
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(directory: Path) -> int:
    """Return the descriptor of the lock; programs that inherit it hold it too."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TargetError("the package manager of an interrupted installation is still at work",
                                  hint="end it, and extract again") from None  # fmt: skip
            time.sleep(_POLL_S)
        else:
            return fd
