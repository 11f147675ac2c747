"""What a type may cost, and that it works through two real machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ted.errors import TedError
from ted.testing.children import in_child, peak_bytes_of, raised_by
from ted.testing.promise import Scene, Trial, promise, told
from ted.testing.tree import CommandFailedError, Tree

_MIB = 1 << 20
SMALL_BYTES, LARGE_BYTES = 12 * _MIB, 60 * _MIB
ALLOWED_BYTES = 20 * _MIB
"""By so much more memory may a build or an extraction take when a file is 48 MiB larger."""


@promise("memory", "memory does not grow with the size of the files")
def memory(trial: Trial) -> None:
    """Build and extract a small and a large file, each in a process that is measured."""
    scene = trial.scene()
    if scene.sample.grow is None:
        return
    small = _costs(scene, SMALL_BYTES)
    large = _costs(scene, LARGE_BYTES)
    for what, before, after in zip(("a build", "an extraction", "a second extraction"), small, large, strict=True):
        if after - before > ALLOWED_BYTES:
            trial.broken(
                f"memory is not flat: {what} of a file of {LARGE_BYTES // _MIB} MiB took {after // _MIB} MiB, of one "
                f"of {SMALL_BYTES // _MIB} MiB it took {before // _MIB} MiB",
                "hand files over as paths (add_file, add_tree) and pieces (install.read), never as a whole",
            )


def _costs(scene: Scene, size: int) -> tuple[int, int, int]:
    assert scene.sample.grow is not None
    options = scene.sample.grow(size)
    if isinstance(options, Mapping):
        scene.options = dict(options)
    scene.bench.settle()
    scene.distributor = scene.new_distributor()
    scene.subscriber = scene.new_subscriber(scene.distributor)
    building = _measured(scene, lambda: scene.distributor.build(scene.options), "built")
    scene.build()
    content = sum(entry.size for entry in scene.distributor.entries(scene.distributor.revisions[-1]).values())
    if content < size * 9 // 10:
        scene.trial.broken(f"the sample's `grow` made its sources {size} bytes large, and {content} were built")
    scene.subscriber.receive()
    extracting = _measured(scene, scene.subscriber.extract, "extracted")
    scene.extract()
    comparing = _measured(scene, lambda: scene.subscriber.extract(force=True), "extracted again")
    scene.rollback()
    return building, extracting, comparing


def _measured(scene: Scene, work: Callable[[], Any], what: str) -> int:
    ended = in_child(lambda: peak_bytes_of(work), files=scene.trial.files)
    if ended.raised is not None:
        scene.trial.broken(f"the large sample cannot be {what}", *told(ended.raised))
    peak: int = ended.value
    return peak


@promise("travels", "through real keys, a signed catalog and two machines it arrives as it does here")
def travels(trial: Trial) -> None:
    """Build, publish, fetch, extract, update and roll back with ``ted``'s own commands."""
    scene = trial.scene()
    empty = scene.state()
    scene.build()
    scene.extract()
    wanted = scene.state()
    scene.rollback()
    try:
        tree = Tree(scene.bench.base / "tree", variables=scene.variables)
        tree.build(trial.type, scene.options)
        tree.carry()
        with scene.bench.sources_away():
            tree.extract()
        scene.must_be(wanted, "through two machines something else arrived", again=True)
        with scene.bench.sources_away():
            tree.rollback()
    except (TedError, CommandFailedError) as error:
        trial.broken("it does not travel through two machines", *told(raised_by(error)))
    scene.must_be(empty, "a rollback of what had travelled did not restore what was there before")
