"""What a build keeps to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ted.content.entry import Entry
from ted.errors import TedError
from ted.testing.children import called_from, in_child, raised_by, watch, written_by
from ted.testing.looks import differences, shortened, snapshot
from ted.testing.promise import Scene, Trial, inside, promise, told

OTHER_DAYS = 3
"""So many interpreters build the same once more, each with another order of sets."""
_TIME_LIMIT_S = 120


@promise("deterministic", "the same sources give the same content tree: on another day, machine and directory, "
         "in any order of sets and listings")  # fmt: skip
def deterministic(trial: Trial) -> None:
    """Build here twice, and in fresh interpreters that live on another day under another name."""
    scene = trial.scene()
    first = scene.build()
    wanted = _shape(scene.distributor.entries(first.revision))
    again = scene.new_distributor()
    try:
        second = again.build(scene.options)
    except TedError as error:
        trial.broken("a second build of the same sources failed in the same process", *told(raised_by(error)))
    _compare(trial, wanted, _shape(again.entries(second.revision)), "again in the same process")
    if first.record.manifest != second.record.manifest or _packs(first) != _packs(second):
        trial.broken("the same sources gave the same files in other frames", "whoever has them must fetch them again")
    with ThreadPoolExecutor(OTHER_DAYS) as pool:
        for answer in pool.map(lambda number: _elsewhere(scene, number), range(1, OTHER_DAYS + 1)):
            if "error" in answer:
                trial.broken("a build of the same sources failed on another day", *answer["error"])
            _compare(trial, wanted, answer["tree"], "on another day, in another process, under another host name")


def _packs(build: Any) -> list[Any]:
    return [(pack.bytes, pack.root) for pack in build.record.packs]


def _shape(entries: Mapping[bytes, Entry]) -> dict[str, list[str]]:
    """Return a content tree as JSON has it."""
    return {os.fsdecode(path): [repr(part) for part in entry] for path, entry in entries.items()}


def _elsewhere(scene: Scene, number: int) -> dict[str, Any]:
    root = scene.bench.base / "elsewhere" / str(number)
    root.mkdir(parents=True)
    asked = {"type": scene.trial.type, "options": dict(scene.options), "root": str(root), "number": number,
             "path": sys.path}  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": str(number), "TZ": f"TED-{number + 5}", "TMPDIR": str(root),
                   "HOME": str(root), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ted.testing.otherday"], input=json.dumps(asked, default=str), text=True, cwd=root,
        env=environment, capture_output=True, timeout=_TIME_LIMIT_S, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": [f"the process ended with {done.returncode}: {done.stderr[-1000:]}"]}
    return answer


_PARTS = Entry._fields


def _compare(trial: Trial, one: Mapping[str, list[str]], other: Mapping[str, list[str]], when: str) -> None:
    words = []
    for path in sorted({*one, *other}):
        name = path.removeprefix("data/")
        if path not in one or path not in other:
            words.append(f"{name} is only in {'the first' if path in one else 'the second'}")
        elif one[path] != other[path]:
            parts = [part for part, a, b in zip(_PARTS, one[path], other[path], strict=True) if a != b]
            words.append(f"{name}: {', '.join(parts)} differ")
    if words:
        trial.broken(
            f"build is not deterministic: two builds of the same sources, the second {when}, gave different content",
            shortened(words), "leave out times, names of hosts and processes, randomness; sort what has no order",
        )  # fmt: skip


@promise("notices", "a build makes a new revision exactly when something changed, whatever was built before")
def notices(trial: Trial) -> None:
    """Build, build again, change, build, build again; and build the last in a place that knows nothing."""
    scene = trial.scene()
    first = scene.build()
    second = scene.build("the sample, for the second time,")
    if second.changed or second.revision != first.revision:
        trial.broken("a second build of unchanged sources made a new revision",
                     "a build that finds nothing new must add exactly what the one before added")  # fmt: skip
    before = scene.distributor.entries(first.revision)
    scene.change()
    third = scene.build("the changed sample")
    after = scene.distributor.entries(third.revision)
    if not third.changed or third.revision == first.revision or _without_root(before) == _without_root(after):
        trial.broken("a build does not notice that its sources changed", "it gave the former content once more")
    fresh = scene.new_distributor()
    try:
        fourth = fresh.build(scene.options)
    except TedError as error:
        trial.broken("the changed sample cannot be built where nothing was built before", *told(raised_by(error)))
    if _without_root(fresh.entries(fourth.revision)) != _without_root(after):
        words = _names(after, fresh.entries(fourth.revision))
        trial.broken("a build depends on what was built before: with an empty scratch directory the same sources gave "
                     f"other content: {words}")  # fmt: skip
    if scene.build("the changed sample, for the second time,").changed:
        trial.broken("a second build of the changed sources made a new revision again")


def _without_root(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: entry for path, entry in entries.items() if path != b"data"}


def _names(one: Mapping[bytes, Entry], other: Mapping[bytes, Entry]) -> str:
    return shortened(os.fsdecode(path.removeprefix(b"data/")) for path in sorted({*one, *other})
                     if one.get(path) != other.get(path))  # fmt: skip


@promise("sources", "a build leaves its sources and everything else as they are; it writes in `build.scratch` only")
def sources(trial: Trial) -> None:
    """Build while each write is listed, and look at everything before and after."""
    scene = trial.scene()
    before = snapshot(scene.bench.sources)
    outside = _but_temporary(scene)
    ended = in_child(lambda: _written(scene), files=trial.files)
    if ended.raised is not None or ended.late:
        trial.broken("the sample cannot be built", *(told(ended.raised) if ended.raised else ["it did not end"]))
    words = differences(before, snapshot(scene.bench.sources), below=scene.bench.root)
    if words:
        trial.broken(f"a build changed its own sources: {shortened(words)}")
    words = differences(outside, _but_temporary(scene), below=scene.bench.root)
    if words:
        trial.broken(f"a build changed what is not its own: {shortened(words)}", "write in build.scratch only")
    if not ended.well:
        trial.broken("a build whose writes are listed does not end as a function ends: it died, or left with os._exit")
    if ended.value:
        trial.broken(f"a build wrote outside of its scratch directory: {shortened(ended.value)}")


def _but_temporary(scene: Scene) -> Any:
    found = snapshot(scene.bench.root)
    temporary = str(scene.bench.root / "tmp")
    found[temporary] = found[temporary]._replace(mtime_ns=0)
    return found


def _written(scene: Scene) -> list[str]:
    """Build, and return the paths that the plugin wrote to and that are not its own."""
    allowed = [scene.distributor.working.path, scene.bench.root / "tmp", scene.bench.aside, Path("/dev"), Path("/proc")]
    return list_writes(scene.trial, allowed, lambda: scene.distributor.build(scene.options))


def list_writes(trial: Trial, allowed: list[Path], work: Any) -> list[str]:
    """Do ``work`` and return the absolute paths outside of ``allowed`` that the plugin's own code wrote to."""
    found: list[str] = []

    def tell(event: str, arguments: tuple[Any, ...]) -> None:
        found.extend(
            f"{event.removeprefix('os.')} of {path}" for path in written_by(event, arguments)
            if not inside(path, *allowed) and "__pycache__" not in path and called_from(trial.files)
        )  # fmt: skip

    watch(tell)
    work()
    return found
