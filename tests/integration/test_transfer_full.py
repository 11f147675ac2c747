"""A disk that fills, at every stage of an update: what is said, what stays, and that it goes on when there is room."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from fleet import CommandError, CountingProxy, Fleet, same_trees, two_tiers

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")


class SmallDisk:
    """A file system in memory of a size that may change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(path)], check=True)

    @property
    def used_bytes(self) -> int:
        disk = os.statvfs(self.path)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Make it so small or large that this much is free."""
        size = f"remount,size={self.used_bytes + free_bytes}"
        subprocess.run(["mount", "-o", size, str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def small_disk(fleet: Fleet) -> Iterator[Callable[[str], SmallDisk]]:
    """Yield a function that gives a node of the fleet a working directory on a small disk."""
    with ExitStack() as disks:

        def put(name: str) -> SmallDisk:
            disk = SmallDisk(fleet.working(name))
            disks.callback(disk.close)
            return disk

        yield put
        fleet.close()


def pack(fleet: Fleet, name: str, revision: str) -> bytes:
    return (fleet.working(name) / "hq" / "app" / revision / "DISTFILE.TED").read_bytes()


def revisions(disk: SmallDisk) -> list[str]:
    return sorted(path.parent.name for path in disk.path.glob("hq/app/*/DISTFILE.TED"))


def leftovers(disk: SmallDisk) -> list[Path]:
    return list(disk.path.rglob("*_TEMP*"))


def fill(disk: SmallDisk) -> None:
    """Write until nothing fits any more, as somebody else's program would."""
    with (disk.path / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@needs_root
def test_a_disk_that_fills_at_the_distributor_loses_nothing(
    fleet: Fleet, small_disk: Callable[[str], SmallDisk]
) -> None:
    two_tiers(fleet, leaves=1)
    disk = small_disk("hq")
    source = fleet.root / "source"
    source.mkdir(exist_ok=True)
    big, generator = bytearray(random.Random(1).randbytes(12 * MIB)), random.Random(2)
    (source / "big").write_bytes(big)
    fleet.install()
    first = fleet.ted("hq", "build")["distributions"][0]

    # while it builds
    (source / "big").write_bytes(generator.randbytes(12 * MIB))
    before = disk.used_bytes
    disk.leave(3 * MIB)
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "build")
    assert caught.value.returncode == 50
    assert "No space left on device" in caught.value.error["message"]
    assert "the former revision is unchanged" in caught.value.error["hint"]
    assert revisions(disk) == [first["revision"]]
    assert leftovers(disk) == []
    assert disk.used_bytes < before + MIB

    # while it makes the patch: the revision is there all the same
    big[: 6 * MIB] = generator.randbytes(6 * MIB)
    (source / "big").write_bytes(big)
    disk.leave(10 * MIB)
    second = fleet.ted("hq", "build")["distributions"][0]
    assert (second["changed"], second["patch_bytes"]) == (True, None)
    assert leftovers(disk) == []
    fleet.ted("hq", "verify", "--stored")

    # and with room again
    disk.leave(100 * MIB)
    big[:100] = generator.randbytes(100)
    (source / "big").write_bytes(big)
    assert fleet.ted("hq", "build")["distributions"][0]["patch_bytes"] < 10_000


@needs_root
def test_a_disk_that_fills_at_a_receiver_keeps_what_came_and_goes_on_when_there_is_room(
    fleet: Fleet, small_disk: Callable[[str], SmallDisk], meter: Callable[[Fleet, str], CountingProxy]
) -> None:
    two_tiers(fleet, leaves=1)
    disk, line = small_disk("e01"), meter(fleet, "s01")
    (fleet.root / "source").mkdir(exist_ok=True)
    content = bytearray(random.Random(1).randbytes(12 * MIB))
    (fleet.root / "source" / "big").write_bytes(content)
    fleet.install()
    fleet.start()
    revision = fleet.ted("hq", "build")["distributions"][0]["revision"]

    # no room from the first byte on: refused before one crosses
    disk.leave(8 * MIB)
    line.zero()
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "must stay free" in caught.value.error["message"]
    assert line.bytes < MIB

    # somebody else fills the disk meanwhile
    disk.leave(14 * MIB)
    line.rate_bytes_s = 4 * MIB
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: line.bytes > 4 * MIB)
    fill(disk)
    fleet.until(lambda: "the disk is full" in fleet.log("e01"))
    time.sleep(2)
    (disk.path / "filler").unlink()
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    (said,) = fleet.ted("hq", "send", "--watch", send)["sends"][0]["errors"].values()
    assert "No space left on device" in said
    assert "what came stays" in said
    line.rate_bytes_s = None
    line.zero()
    assert fleet.ted("hq", "send")["sends"][0]["states"]["e01"] == "received"
    assert pack(fleet, "e01", revision) == pack(fleet, "hq", revision)
    assert line.bytes < 10 * MIB
    fleet.ted("e01", "extract")
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""


class Gauge:
    """Notes the least that a disk has had free, while the body of the ``with`` runs."""

    def __init__(self, path: Path) -> None:
        self._path, self._ended = path, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.least_bytes = 1 << 60

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._look()

    def _look(self) -> None:
        disk = os.statvfs(self._path)
        self.least_bytes = min(self.least_bytes, disk.f_bavail * disk.f_frsize)


@needs_root
def test_a_chain_of_patches_leaves_free_what_shall_stay_free(
    fleet: Fleet, small_disk: Callable[[str], SmallDisk], meter: Callable[[Fleet, str], CountingProxy]
) -> None:
    floor, size = 6 * MIB, 6 * MIB
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_min_free"] = floor
    disk, line = small_disk("e01"), meter(fleet, "s01")
    big = fleet.root / "source" / "big"
    big.parent.mkdir(exist_ok=True)
    content, generator = bytearray(random.Random(1).randbytes(size)), random.Random(2)
    big.write_bytes(content)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    for _ in range(4):  # each changes every frame a little: the patch is small, the pack it makes is not
        for at in range(0, size - 16, 16 << 10):
            content[at : at + 8] = generator.randbytes(8)
        big.write_bytes(content)
        assert fleet.ted("hq", "build")["distributions"][0]["patch_bytes"] < size / 10

    # not even the blocks have room: refused before one crosses
    disk.leave(floor + size // 2)
    line.zero()
    with Gauge(disk.path) as gauge, pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "must stay free" in caught.value.error["message"]
    assert line.bytes < MIB / 2
    assert gauge.least_bytes >= floor

    # the blocks have room, the packs between have not: the blocks come, and the floor holds all the time
    disk.leave(floor + size * 5 // 2)
    line.zero()
    with Gauge(disk.path) as gauge:
        revision = fleet.ted("hq", "send")["sends"][0]["revision"]
    assert gauge.least_bytes >= floor
    assert pack(fleet, "e01", revision) == pack(fleet, "hq", revision)
    assert line.bytes > size

    # and with room for all: by patches again
    for _ in range(2):
        for at in range(0, size - 16, 16 << 10):
            content[at : at + 8] = generator.randbytes(8)
        big.write_bytes(content)
        fleet.ted("hq", "build")
    disk.leave(floor + size * 5)
    line.zero()
    with Gauge(disk.path) as gauge:
        revision = fleet.ted("hq", "send")["sends"][0]["revision"]
    assert gauge.least_bytes >= floor
    assert pack(fleet, "e01", revision) == pack(fleet, "hq", revision)
    assert line.bytes < size


@needs_root
def test_what_others_write_meanwhile_ends_a_transfer_at_the_floor(
    fleet: Fleet, small_disk: Callable[[str], SmallDisk], meter: Callable[[Fleet, str], CountingProxy]
) -> None:
    floor, size = 8 * MIB, 12 * MIB
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_min_free"] = floor
    disk, line = small_disk("e01"), meter(fleet, "s01")
    (fleet.root / "source").mkdir(exist_ok=True)
    (fleet.root / "source" / "big").write_bytes(random.Random(1).randbytes(size))
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    disk.leave(floor + size + 3 * MIB)
    line.rate_bytes_s = 4 * MIB
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: line.bytes > 4 * MIB)
    (disk.path / "other").write_bytes(bytes(6 * MIB))
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    (said,) = fleet.ted("hq", "send", "--watch", send)["sends"][0]["errors"].values()
    assert "must stay free" in said
    found = os.statvfs(disk.path)
    assert found.f_bavail * found.f_frsize >= floor
