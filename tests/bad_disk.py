"""A disk of which a part cannot be read until it is written anew: real errors from a real file system (root)."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

FIBMAP = 1
IMAGE_BYTES = 32 << 20


class BadDisk:
    """A file that lies on such a disk and shows in its old place; everything from ``first_bad_byte`` on is unreadable.

    The disk is a loop device whose image ends where the bad part begins: the system reports what is beyond as an
    input/output error, and writing there brings it back.
    """

    def __init__(self, file: Path, first_bad_byte: int, scratch: Path) -> None:
        self.file = file
        scratch.mkdir()
        image, disk = scratch / "image", scratch / "disk"
        disk.mkdir()
        with image.open("wb") as made:
            made.truncate(IMAGE_BYTES)
        _call("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0", image)
        with ExitStack() as mounted:
            _call("mount", "-o", "loop", image, disk)
            mounted.callback(_call, "umount", "--lazy", disk)
            copy = shutil.copy2(file, disk / "file")
            with open(copy, "rb") as opened:
                os.fsync(opened.fileno())
                os.sync()
                block_bytes = os.fstatvfs(opened.fileno()).f_bsize
                number = struct.pack("i", first_bad_byte // block_bytes)
                (on_disk,) = struct.unpack("i", fcntl.ioctl(opened.fileno(), FIBMAP, number))
                os.truncate(image, on_disk * block_bytes)
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _call("mount", "--bind", copy, file)
            mounted.callback(_call, "umount", "--lazy", file)
            self._mounted = mounted.pop_all()

    def close(self) -> None:
        """Take it away again."""
        self._mounted.close()


def _call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)
