"""What an extraction keeps to, and what takes it back."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted.errors import TedError
from ted.testing.children import in_child, raised_by
from ted.testing.looks import Look, differences, moved, shortened, snapshot
from ted.testing.promise import Scene, State, Trial, inside, promise, told
from ted.testing.promises.building import list_writes

MOST_TRAPS = 6
_OURS = ".ted-"


@promise("installs", "what was built can be extracted on another machine, where neither sources nor scratch are")
def installs(trial: Trial) -> None:
    """Build, take the sources away, extract."""
    scene = trial.scene()
    before = scene.state()
    _build_apart(scene)
    result = scene.extract()
    if scene.changed(before, scene.state()) == []:
        trial.broken("an extraction changed nothing at all", "neither the targets of the sample nor its outcome")
    if not result.changed:
        trial.broken("an extraction changed the machine and says that it changed nothing")
    if result.warnings:
        trial.broken("extracting the sample is not without warnings", *result.warnings[:3])


def _build_apart(scene: Scene) -> None:
    """Build in another process, so that nothing of the build is left in the memory of this one."""

    def work() -> set[str]:
        scene.distributor.build(scene.options)
        return scene.distributor.signed

    ended = in_child(work, files=scene.trial.files)
    if ended.raised is not None or ended.value is None:
        scene.trial.broken("the sample cannot be built", *(told(ended.raised) if ended.raised else ["it did not end"]))
    scene.distributor.signed |= ended.value


@promise("faithful", "what arrives is what was there: bytes, modes, owners, times, links, extended attributes, "
         "empty directories")  # fmt: skip
def faithful(trial: Trial) -> None:
    """Compare each mirror with its source, before and after an update."""
    scene = trial.scene()
    if scene.sample.mirrors:
        for source in scene.sample.mirrors.values():
            _enrich(source)
    for which in ("first", "second"):
        if which == "second":
            scene.change()
        scene.build()
        scene.extract()
        for target, source in scene.sample.mirrors.items():
            here = moved(snapshot(source), source, target)
            there = {path: look for path, look in snapshot(target).items() if path in here}
            words = differences(here, there, below=scene.bench.root)
            if words:
                trial.broken(f"what arrived with the {which} revision is not what the sources hold: {shortened(words)}")


def _enrich(source: Path) -> None:
    """Add what is easily lost on the way, with attributes of its own."""
    place = source / "easily-lost"
    (place / "empty").mkdir(parents=True, mode=0o750)
    (place / "nothing.txt").touch()
    (place / "tool.sh").write_text("#!/bin/sh\n")
    (place / "tool.sh").chmod(0o4751)
    (place / "marked.txt").write_text("marked\n")
    with contextlib.suppress(OSError):
        os.setxattr(place / "marked.txt", "user.mark", b"\0\xff")
    os.link(place / "marked.txt", place / "second-name.txt")
    if os.geteuid() == 0:
        os.chown(place / "nothing.txt", 1, 2)
    (place / "link").symlink_to("marked.txt")
    (place / "dangling").symlink_to("nowhere")
    (place / os.fsdecode(b"latin-\xe9")).write_text("a name that is not UTF-8\n")
    (place / "private").mkdir(mode=0o2700)
    (place / "private").chmod(0o2700)
    moment_ns = 1_400_000_000_987_654_321
    for directory, names, files in os.walk(place, topdown=False):
        for path in [*(os.path.join(directory, name) for name in [*files, *names]), directory]:
            os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)
    os.utime(source, ns=(moment_ns, moment_ns))


@promise("idempotent", "an extraction of what is installed already changes nothing, and says so")
def idempotent(trial: Trial) -> None:
    """Extract the same again, comparing everything; also as a first extraction."""
    scene = trial.scene()
    scene.build()
    scene.extract()
    state = scene.state()
    _nothing_more(scene, state, "the second extraction of one revision")
    scene.change()
    scene.build()
    scene.extract()
    _nothing_more(scene, scene.state(), "the second extraction of an update")
    problems = scene.subscriber.verify()
    if problems:
        trial.broken("`ted verify` finds drift right after an extraction",
                     *(f"{each.path}: {each.what}" for each in problems[:3]))  # fmt: skip


def _nothing_more(scene: Scene, state: State, what: str) -> None:
    result = scene.extract(what, force=True, diff=True)
    scene.must_be(state, f"{what} changed the machine")
    if result.changed or result.diff:
        done = [f"{change.change}: {change.path}" for change in result.diff[:3]] or [str(result.actions)]
        scene.trial.broken(f"extract is not idempotent: {what} says that it changed something", *done,
                           "plan only what differs")  # fmt: skip


@promise("transactional", "nothing changes before the hook has returned, and nothing but through the transaction")
def transactional(trial: Trial) -> None:
    """Look at the machine when all is planned and nothing is done."""
    scene = trial.scene()
    for which in ("an extraction", "an update"):
        if which == "an update":
            scene.change()
        scene.build()
        before, outside = _at_rest(scene), _calm(scene.outside())
        seen: list[tuple[State, Any]] = []

        def at_commit(phase: str, _number: int, seen: list[Any] = seen) -> None:
            if phase == "commit" and not seen:
                seen.append((_at_rest(scene), _calm(scene.outside())))

        scene.subscriber.on_act = at_commit
        result = scene.extract()
        scene.subscriber.on_act = None
        if not seen:
            if result.changed or scene.changed(before, _at_rest(scene)):
                trial.broken(f"{which} changed the machine without its transaction",
                             shortened(scene.changed(before, _at_rest(scene))),
                             "use install.transaction or install.place")  # fmt: skip
            trial.broken(f"{which} planned nothing")
        words = scene.changed(before, seen[0][0]) or differences(outside, seen[0][1], below=scene.bench.root)
        if words:
            trial.broken(f"{which} changed the machine before its plan was whole: {shortened(words)}",
                         "change nothing yourself: plan it in install.transaction")  # fmt: skip


def _at_rest(scene: Scene) -> State:
    """Return the state without what the engine stages, and without the times of directories it stages in."""
    state = scene.state()
    return State(_calm(state.files), state.outcome)


def _calm(look: Mapping[str, Look]) -> dict[str, Look]:
    return {
        path: each._replace(mtime_ns=0) if each.kind == "directory" else each
        for path, each in look.items() if f"/{_OURS}" not in path
    }  # fmt: skip


@promise("checked", "check mode changes nothing, reads no content, and foretells exactly what is then done")
def checked(trial: Trial) -> None:
    """Foretell and do: a first extraction over files of others, an update, a repair."""
    scene = trial.scene()
    scene.build()
    _foretell(scene, "an extraction")
    scene.change()
    scene.build()
    _foretell(scene, "an update")
    if _drift(_written(scene)):
        _foretell(scene, "a repair", force=True)


def _foretell(scene: Scene, what: str, **how: Any) -> None:
    trial = scene.trial
    before, playground = scene.state(), scene.bench.look()
    machine = snapshot(scene.subscriber.working.path)
    read: list[int] = []
    with _counted_reading(read):
        foretold = scene.extract(f"{what} in check mode", check=True, diff=True, **how)
    scene.must_be(before, f"check mode of {what} changed the machine")
    words = differences(_no_times(playground, scene), _no_times(scene.bench.look(), scene), below=scene.bench.root)
    if words:
        trial.broken(f"check mode of {what} changed something: {shortened(words)}")
    _nothing_new(scene, machine, what)
    if read and scene.sample.reads is None:
        trial.broken(f"check mode of {what} reads content ({sum(read)} bytes)",
                     "transaction.write takes install.read(entry) and does not touch it in check mode; what must be "
                     "known beforehand goes into a small entry of its own or into the options")  # fmt: skip
    done = scene.extract(what, diff=True, **how)
    if foretold.actions != done.actions:
        trial.broken(f"check mode does not foretell {what}: it said {_counts(foretold.actions)}, and then was done "
                     f"{_counts(done.actions)}")  # fmt: skip
    if foretold.things != done.things:
        trial.broken(f"check mode does not foretell {what}: of what is no path it said {foretold.things!r:.300}, and "
                     f"then was done {done.things!r:.300}")  # fmt: skip
    one, other = ({(each.change, each.path) for each in result.diff} for result in (foretold, done))
    if one != other:
        words = [f"{change} {path}" for change, path in sorted(one ^ other)]
        trial.broken(f"check mode does not foretell {what}: only foretold or only done: {shortened(words)}")


def _nothing_new(scene: Scene, machine: Mapping[str, Look], what: str) -> None:
    """Say that the promise is broken if the node's own directory holds more than it received."""
    received = f"{scene.subscriber.working.path}/hq"
    now = snapshot(scene.subscriber.working.path)
    strange = [path for path in now if path not in machine and not inside(path, received) and path[-5:] != ".lock"]
    if strange:
        scene.trial.broken(f"check mode of {what} left something in the working directory: {shortened(strange)}")


def _counts(actions: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(actions.items()) if count) or "nothing"


def _no_times(look: Mapping[str, Look], scene: Scene) -> dict[str, Look]:
    temporary = str(scene.bench.root / "tmp")
    return {path: each._replace(mtime_ns=0) if path == temporary else each for path, each in look.items()
            if not scene.is_volatile(path)}  # fmt: skip


class _counted_reading:  # noqa: N801 -- used as a function
    """Count what is read of a revision's content meanwhile."""

    def __init__(self, read: list[int]) -> None:
        self._read = read

    def __enter__(self) -> None:
        from ted.content.revision import RevisionReader

        self._chunks = RevisionReader.chunks

        def counting(reader: RevisionReader, entry: Any) -> Iterator[Any]:
            for chunk in self._chunks(reader, entry):
                if isinstance(chunk, bytes | bytearray | memoryview) and entry.size > _SMALL_BYTES:
                    self._read.append(len(chunk))
                yield chunk

        RevisionReader.chunks = counting  # type: ignore[method-assign, assignment]

    def __exit__(self, *_error: object) -> None:
        from ted.content.revision import RevisionReader

        RevisionReader.chunks = self._chunks  # type: ignore[method-assign]


_SMALL_BYTES = 4096
"""Entries up to this size may be read in check mode: what a type must know beforehand."""


def _written(scene: Scene) -> list[str]:
    """Return the files in the targets that the distribution put there: those that taking it back changes."""
    after = scene.state()
    return [
        path for path, look in after.files.items()
        if look.kind == "file" and any(path.startswith(f"{root.rstrip('/')}/") for root in scene.subscriber.roots)
        and "of-somebody-else" not in path
    ]  # fmt: skip


def _drift(files: list[str]) -> list[str]:
    """Change one of some files and remove another, as somebody might; return which."""
    touched = files[:1] + files[1:][-1:]
    if touched:
        _change_by_hand(touched[0])
    for path in touched[1:]:
        os.unlink(path)
    return touched


def _change_by_hand(path: str) -> None:
    """Change a byte of a file; its size and its time stay."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]) if first else b"by hand\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@promise("drift", "`ted verify` finds what somebody changed by hand, and a repair mends exactly that")
def drift(trial: Trial) -> None:
    """Change and remove extracted files, verify, repair."""
    scene = trial.scene()
    before = scene.state()
    scene.build()
    scene.extract()
    wanted = scene.state()
    ours = [path for path in _written(scene) if before.files.get(path) != wanted.files[path]]
    ours = [path for path in ours if wanted.files[path].same_as == path and not _shared(wanted, path)]
    touched = _drift(ours)
    if not touched:
        return
    found = {each.path for each in scene.subscriber.verify()}
    missed = [path for path in touched if path not in found]
    if missed:
        trial.broken("`ted verify` does not find what was changed by hand: "
                     + shortened(os.path.relpath(path, scene.bench.root) for path in missed),
                     "plan what differs from the revision, whatever was done; or find it in ted_verify")  # fmt: skip
    scene.extract("a repair", force=True)
    words = differences(_calm(wanted.files), _calm(scene.state().files), below=scene.bench.root)
    if words:
        trial.broken(f"a repair does not bring back what was extracted: {shortened(words)}")


def _shared(state: State, path: str) -> bool:
    return any(look.same_as == path and other != path for other, look in state.files.items())


@promise("confined", "nothing outside of the targets changes, also where links lead out of them")
def confined(trial: Trial) -> None:
    """List every write, look at everything around, and plant links as traps."""
    scene = trial.scene()
    scene.build()
    former = scene.state().files
    _extract_listed(scene)
    before = scene.outside()
    with scene.nothing_outside("an extraction"):
        scene.extract()
    ours = {path: look for path, look in scene.state().files.items() if _is_below_root(scene, path)}
    with scene.nothing_outside("a rollback"):
        scene.rollback()
    mine = [path for path in ours if path not in former or (former[path] != ours[path] and ours[path].kind == "file")]
    for number, path in enumerate(_chosen(mine, ours)):
        _trap(scene, number, path, ours[path].kind)
    words = differences(before, scene.outside(), below=scene.bench.root)
    if words:
        trial.broken(f"extractions and rollbacks changed what is outside of the targets: {shortened(words)}")


def _extract_listed(scene: Scene) -> None:
    """Extract in a process whose writes are listed, and take it back."""
    allowed = [scene.subscriber.working.path, scene.bench.root / "tmp", scene.bench.aside, *scene.targets,
               Path("/dev"), Path("/proc")]  # fmt: skip
    scene.subscriber.receive()
    with scene.bench.sources_away():
        ended = in_child(lambda: list_writes(scene.trial, allowed, scene.subscriber.extract), files=scene.trial.files)
    if ended.raised is not None:
        scene.trial.broken("the revision cannot be extracted on another machine than the one it was built on",
                           *told(ended.raised))  # fmt: skip
    if not ended.well:
        scene.trial.broken("an extraction does not end as a function ends: its process died, or left with os._exit")
    if ended.value:
        scene.trial.broken(f"an extraction wrote outside of its targets: {shortened(ended.value)}")
    scene.rollback()


def _is_below_root(scene: Scene, path: str) -> bool:
    return any(path.startswith(f"{root.rstrip('/')}/") for root in scene.subscriber.roots)


def _chosen(mine: list[str], ours: Mapping[str, Look]) -> list[str]:
    """Return a few paths to put traps at: directories first, then files."""
    directories = [path for path in mine if ours[path].kind == "directory"]
    others = [path for path in mine if ours[path].kind != "directory"]
    return directories[: MOST_TRAPS // 2] + others[: MOST_TRAPS - min(len(directories), MOST_TRAPS // 2)]


def _trap(scene: Scene, number: int, path: str, kind: str) -> None:
    """Put a link that leads elsewhere where the distribution has a file or directory, and extract over it."""
    place = Path(path)
    with _planted(scene, number, place, directory=kind == "directory") as trap:
        before = snapshot(trap)
        try:
            with scene.bench.sources_away():
                scene.subscriber.extract()
        except TedError as error:
            raised = raised_by(error)
            if not raised.is_ted:
                scene.trial.broken("an extraction fails where a link stands in its way, and not with an error of ted",
                                   *told(raised))  # fmt: skip
        words = differences(before, snapshot(trap), below=scene.bench.root)
        if scene.subscriber.installed:
            scene.rollback()
    if words:
        scene.trial.broken(
            f"an extraction wrote through the link {os.path.relpath(path, scene.bench.root)}: {shortened(words)}",
            "never through links below a target: install.transaction refuses them, open() follows them",
        )


@contextlib.contextmanager
def _planted(scene: Scene, number: int, place: Path, *, directory: bool) -> Iterator[Path]:
    """Have a link at ``place`` that leads to the yielded path meanwhile, and what was there moved away."""
    trap = scene.bench.elsewhere(f"trap{number}")
    moment_ns = trap.parent.stat().st_mtime_ns
    made = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    moved_away = scene.bench.base / f"moved{number}"
    if os.path.lexists(place):
        place.rename(moved_away)
    scene.bench.write(trap / "victim.txt" if directory else trap, b"not ted's\n")
    place.symlink_to(trap)
    yield trap
    remove(place)
    if os.path.lexists(moved_away):
        moved_away.rename(place)
    for parent in made:
        if parent.exists():
            parent.rmdir()
    remove(trap)
    os.utime(trap.parent, ns=(moment_ns, moment_ns))


def remove(path: Path) -> None:
    """Remove a file, link or directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@promise("rollback", "a rollback restores what was there before, byte and attribute")
def rollback(trial: Trial) -> None:
    """Extract, update, and take both back; then over files that others had there."""
    scene = trial.scene()
    empty = scene.state()
    with scene.nothing_outside("an extraction with its rollback"):
        scene.build()
        scene.extract()
        first = scene.state()
        scene.change()
        scene.build()
        scene.extract()
        scene.rollback("an update")
        scene.must_be(first, "a rollback did not restore the revision before")
        scene.rollback("the first revision")
        scene.must_be(empty, "a rollback did not restore what was there before")
    theirs = [path for path, look in first.files.items()
              if empty.files.get(path) != look and look.kind == "file" and not scene.is_volatile(path)]  # fmt: skip
    for number, path in enumerate(theirs):
        _plant(scene, path, number)
    planted = scene.state()
    if theirs and _extracts(scene):
        scene.rollback("an extraction over files of others")
    scene.must_be(planted, "a rollback did not restore the files of others that were there before")


def _plant(scene: Scene, path: str, number: int) -> None:
    scene.bench.write(Path(path), b"of somebody else %d\n" % number, mode=(0o600, 0o666, 0o4711, 0o444)[number % 4])
    with contextlib.suppress(OSError):
        os.setxattr(path, "user.whose", b"theirs")
    moment_ns = 1_300_000_000_111_111_111 + number
    os.utime(path, ns=(moment_ns, moment_ns))


def _extracts(scene: Scene) -> bool:
    """Extract where files of others are; that it is refused is fine."""
    try:
        with scene.bench.sources_away():
            scene.subscriber.extract()
    except TedError as error:
        raised = raised_by(error)
        if not raised.is_ted:
            scene.trial.broken("an extraction over files of others fails, and not with an error of ted", *told(raised))
        return False
    return True
