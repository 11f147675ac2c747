"""What holds when it does not end well: a kill, an interruption, an error."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ted.content.working import TEMP_SUFFIX
from ted.errors import TedError
from ted.testing.children import Ended, Line, in_child, patiently_none, raised_by, started_since, traced
from ted.testing.looks import differences, shortened
from ted.testing.promise import Scene, State, Trial, promise, told
from ted.testing.promises.extracting import remove

MOST_KILLS = 24
MOST_LINES = 40
MOST_KILLED_LINES = 12
ENDS_WITHIN_S = 10.0


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers 0 .. count - 1, evenly, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / (most - 1)) for number in range(most)})


# --- kills ---------------------------------------------------------------------------------------------------------


@promise("killable", "killed at any act or line, it leaves a state that the next run finishes or undoes")
def killable(trial: Trial) -> None:
    """Kill builds, extractions, updates and rollbacks, hard, everywhere."""
    _kill_builds(trial)
    scene = trial.scene()
    empty = scene.state()
    scene.build()
    steps = _counted(scene, scene.extract)
    first = scene.state()
    scene.rollback()
    for step in spread(steps, MOST_KILLS):
        _killed_at(scene, step, scene.subscriber.extract)
        scene.extract(f"what was killed at step {step + 1} of {steps}")
        _finished(scene, first, f"a kill at step {step + 1} of {steps} of an extraction")
        scene.rollback()
        scene.must_be(empty, f"after a kill at step {step + 1} of {steps} a rollback did not restore what was there")
    for line in _chosen(_lines(scene, scene.subscriber.extract), MOST_KILLED_LINES):
        _at_line(scene, line, _kill, scene.subscriber.extract)
        scene.extract(f"what was killed at {_told(line)}")
        _finished(scene, first, f"a kill at {_told(line)}")
        scene.rollback()
        scene.must_be(empty, f"after a kill at {_told(line)} a rollback did not restore what was there")
    _kill_updates(scene)


def _finished(scene: Scene, wanted: State, what: str) -> None:
    scene.must_be(wanted, f"after {what} the next run did not finish it", again=True)


def _kill_updates(scene: Scene) -> None:
    scene.extract()
    first = scene.state()
    scene.change()
    scene.build()
    steps = _counted(scene, scene.extract)
    second = scene.state()
    undoing = _counted(scene, scene.rollback)
    scene.must_be(first, "a rollback did not restore the revision before")
    for step in spread(steps, MOST_KILLS // 2):
        _killed_at(scene, step, scene.subscriber.extract)
        scene.extract(f"the update that was killed at step {step + 1} of {steps}")
        _finished(scene, second, f"a kill at step {step + 1} of {steps} of an update")
        scene.rollback()
        scene.must_be(first, f"after a kill at step {step + 1} of {steps} of an update a rollback did not restore")
    for step in spread(undoing, MOST_KILLS // 3):
        scene.extract()
        if not _killed_at(scene, step, scene.subscriber.rollback):
            scene.rollback("what was killed")
        _finished(scene, first, f"a kill at step {step + 1} of {undoing} of a rollback")


def _kill_builds(trial: Trial) -> None:
    scene = trial.scene()
    built = scene.build()
    wanted = scene.distributor.entries(built.revision)
    scene.distributor = scene.new_distributor()
    for line in _chosen(_lines(scene, _forced(scene))):
        scene.distributor = scene.new_distributor()
        _at_line(scene, line, _kill, _forced(scene), away=False)
        again = scene.build(f"what was killed at {_told(line)}")
        if scene.distributor.entries(again.revision) != wanted:
            where = _told(line)
            trial.broken(f"after a build that was killed at {where} the next one gave other content",
                         "what is half done in scratch must not be taken for whole: write, then rename")  # fmt: skip


def _forced(scene: Scene) -> Callable[[], Any]:
    return lambda: scene.distributor.build(scene.options, force=True)


def _counted(scene: Scene, work: Callable[[], Any]) -> int:
    steps = 0

    def count(_phase: str, _number: int) -> None:
        nonlocal steps
        steps += 1

    scene.subscriber.on_act = count
    work()
    scene.subscriber.on_act = None
    return steps


def _killed_at(scene: Scene, step: int, work: Callable[[], Any]) -> bool:
    """Kill at a step (from 0); return whether it came to its end before."""
    left = step

    def kill(_phase: str, _number: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            _kill()

    scene.subscriber.on_act = kill
    with scene.bench.sources_away():
        scene.subscriber.receive()
        ended = in_child(work, files=scene.trial.files)
    scene.subscriber.on_act = None
    return ended.well


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- lines ---------------------------------------------------------------------------------------------------------


def _lines(scene: Scene, work: Callable[[], Any]) -> list[Line]:
    """Return the plugin's lines that ``work`` reaches, in the order it does; nothing of it stays but what it did."""

    def collect() -> list[Line]:
        found: list[Line] = []
        with traced(scene.trial.files, found.append):
            work()
        return found

    ended = in_child(collect, files=scene.trial.files)
    if not ended.well:
        scene.trial.broken("it fails when it is done once more",
                           *(told(ended.raised) if ended.raised else ["it did not end, or was killed"]))  # fmt: skip
    if scene.subscriber.installed:
        scene.rollback()
    return list(ended.value or ())


def _chosen(lines: Sequence[Line], most: int = MOST_LINES) -> list[Line]:
    return [lines[number] for number in spread(len(lines), most)]


def _told(line: Line) -> str:
    return f"{os.path.basename(line[0])}:{line[1]}"


def _at_line(scene: Scene, line: Line, act: Callable[[], None], work: Callable[[], Any], *, away: bool = True) -> Ended:
    """Do ``work`` in a process of its own, and ``act`` in it when a line is reached."""

    def doing() -> None:
        with traced(scene.trial.files, lambda reached: act() if reached == line else None):
            work()

    with contextlib.ExitStack() as stack:
        if away:
            stack.enter_context(scene.bench.sources_away())
            scene.subscriber.receive()
        return in_child(doing, files=scene.trial.files, time_limit_s=ENDS_WITHIN_S * 3)


# --- interruptions -------------------------------------------------------------------------------------------------


@promise("cancellable", "an interruption ends a build or an extraction soon, is not swallowed, and leaves nothing")
def cancellable(trial: Trial) -> None:
    """Raise KeyboardInterrupt at each line of the plugin, and end it with SIGTERM at some."""
    _interrupt_builds(trial)
    scene = trial.scene()
    scene.build()
    empty = scene.state()
    scene.subscriber.receive()
    lines = _lines(scene, scene.subscriber.extract)
    for line in _chosen(lines):
        _interrupt(scene, line, "extraction", scene.subscriber.extract)
        scene.must_be(empty, f"an extraction that was interrupted at {_told(line)} left something behind")
    for line in _chosen(lines, 2):
        _terminate(scene, line, "extraction", scene.subscriber.extract)


def _interrupt_builds(trial: Trial) -> None:
    scene = trial.scene()
    first = scene.build().revision
    lines = _lines(scene, _forced(scene))
    before = scene.distributor.revisions
    for line in _chosen(lines):
        _interrupt(scene, line, "build", _forced(scene), away=False)
        left = [name for name in os.listdir(scene.distributor.directory) if name.endswith(TEMP_SUFFIX)]
        if left or scene.distributor.revisions != before:
            words = shortened(left) or f"{first} is not the newest revision any more"
            trial.broken(f"a build that was interrupted at {_told(line)} left something: {words}")
    for line in _chosen(lines, 2):
        _terminate(scene, line, "build", _forced(scene), away=False)


def _interrupt(scene: Scene, line: Line, what: str, work: Callable[[], Any], *, away: bool = True) -> None:
    mark = f"{os.getpid()}-{line[1]}-{what}"

    def raising() -> None:
        raise KeyboardInterrupt

    def marked() -> None:
        os.environ["TED_TRIAL"] = mark
        try:
            work()
        finally:
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join(ENDS_WITHIN_S)
                    if thread.is_alive():
                        raise _LeftRunningError(thread.name)

    ended = _at_line(scene, line, raising, marked, away=away)
    where = f"a KeyboardInterrupt at {_told(line)}, during a{'n' if what[0] == 'e' else ''} {what},"
    if problem := _not_obeyed(ended):
        scene.trial.broken(f"cancellation is not obeyed: {where} {problem[0]}", *problem[1:])
    if running := patiently_none(lambda: started_since(mark), 2.0):
        scene.trial.broken(f"after {where} a program that it had started went on: {shortened(running)}",
                           "end what you started in a `finally`; subprocess.run does")  # fmt: skip


def _not_obeyed(ended: Ended) -> list[str]:
    """Return what is wrong with how a process took an interruption, in lines; nothing when it obeyed."""
    if ended.late:
        return [f"did not end it within {ENDS_WITHIN_S * 3:.0f} s"]
    if ended.raised is None:
        return ["was swallowed", "no `except:` and no `except BaseException:` without `raise`"]
    if ended.raised.name == "_LeftRunningError":
        return [f"left a thread running: {ended.raised.message}"]
    if ended.raised.name != "KeyboardInterrupt":
        return ["became something else", *told(ended.raised)]
    return []


class _LeftRunningError(Exception):
    """A thread did not end."""


def _terminate(scene: Scene, line: Line, what: str, work: Callable[[], Any], *, away: bool = True) -> None:
    ended = _at_line(scene, line, lambda: os.kill(os.getpid(), signal.SIGTERM), work, away=away)
    if ended.signal != signal.SIGTERM:
        scene.trial.broken(f"cancellation is not obeyed: SIGTERM at {_told(line)}, during the {what}, did not end it",
                           "leave signal handlers alone; what must be tidied is tidied by the next run")  # fmt: skip


# --- errors --------------------------------------------------------------------------------------------------------


@promise("errors", "what cannot be done is told by an error of ted.errors with a hint, and nothing is half done")
def errors(trial: Trial) -> None:
    """Take the sources away before a build, and put obstacles in the way of an extraction."""
    _without_sources(trial)
    _with_obstacles(trial)


def _without_sources(trial: Trial) -> None:
    scene = trial.scene()
    built = scene.build()
    if not vanish(scene):
        return
    try:
        scene.distributor.build(scene.options)
    except (TedError, OSError) as error:
        raised = raised_by(error, trial.files)
    else:
        trial.broken("sources that are gone are built as if nothing were wrong",
                     "Subscribers would delete what they have: raise EmptySourceError")  # fmt: skip
    if not raised.is_ted:
        trial.broken("sources that are gone end the build with an error that is none of ted's", *told(raised),
                     "raise an error of ted.errors that says what, where, and in its hint what now")  # fmt: skip
    if not raised.hint:
        trial.broken("the error about sources that are gone has no hint", *told(raised), "hint= says what to do now")
    if scene.distributor.revisions != [built.revision]:
        trial.broken("a build that failed touched the former revision")


def vanish(scene: Scene) -> bool:
    """Make the sources unreachable; False when there are none that could be."""
    if scene.sample.vanish is not None:
        scene.sample.vanish()
        return True
    found = list(scene.bench.sources.iterdir())
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return bool(found)


def _with_obstacles(trial: Trial) -> None:
    scene = trial.scene()
    empty = scene.state()
    scene.build()
    scene.extract()
    wanted = scene.state()
    scene.rollback()
    files = [path for path, look in wanted.files.items() if look.kind == "file" and path not in empty.files]
    for path in files[:2]:
        with _obstacle(Path(path)):
            where = os.path.relpath(path, scene.bench.root)
            _must_tell(scene, wanted, f"a directory of somebody else's stands at {where}")
    directories = {os.path.dirname(path) for path in files} - {str(target) for target in scene.targets}
    for path in sorted(directories)[:1]:
        where = os.path.relpath(path, scene.bench.root)
        with _obstacle(Path(path), kind="file"):
            _must_tell(scene, wanted, f"a file of somebody else's stands at {where}")
        with _obstacle(Path(path), kind="link"):
            _must_tell(scene, wanted, f"a link that leads elsewhere stands at {where}")


@contextlib.contextmanager
def _obstacle(path: Path, *, kind: str = "directory") -> Iterator[None]:
    made = [parent for parent in path.parents if not parent.exists()]
    away = path.with_name(path.name + ".away")
    if path.exists():
        path.rename(away)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "directory":
        path.mkdir()
        (path / "theirs.txt").write_text("not ted's\n")
    elif kind == "file":
        path.write_text("not ted's\n")
    else:
        path.symlink_to("/nowhere/at/all")
    yield
    remove(path)
    if away.exists():
        away.rename(path)
    for parent in made:
        if parent.exists():
            shutil.rmtree(parent)


def _must_tell(scene: Scene, wanted: State, where: str) -> None:
    trial = scene.trial
    before = scene.state()
    try:
        with scene.bench.sources_away():
            result = scene.subscriber.extract()
    except TedError as error:
        raised = raised_by(error, trial.files)
        if not raised.is_ted:
            trial.broken(f"where {where}, an extraction ends with an error that is none of ted's", *told(raised))
        if raised.by_plugin and not raised.hint:
            trial.broken(f"where {where}, the error has no hint", *told(raised), "hint= says what to do now")
        words = differences(before.files, scene.state().files, below=scene.bench.root)
        if words:
            trial.broken(f"where {where}, an extraction failed and left something half done: {shortened(words)}")
        return
    after = scene.state()
    lost = [path for path, look in wanted.files.items() if after.files.get(path, look).content != look.content
            or path not in after.files]  # fmt: skip
    if result.state == "extracted" and lost:
        trial.broken(f"where {where}, an extraction says that it went well, and it did not: "
                     + shortened(f"{os.path.relpath(path, scene.bench.root)} is not as it should be" for path in lost),
                     "let errors through: the engine undoes what was done and tells")  # fmt: skip
    if scene.subscriber.installed:
        scene.rollback()
