"""The parts of the demonstration that are not ted: a source, edits in it, a check, the story told at the end.

Rules:
 * The source is the whole standard library. What else was installed in the same directory is none of it.
 * ``prepare`` may be called again at any time: a copy that was cut off is made anew, edits are taken back.
 * ``check`` asks another program (rsync, else diff) whether two trees are the same, and prints nothing but differences.
 * Nothing here imports ted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Other people's packages, and what an interpreter is writing just now.
LEFT_OUT = ("site-packages", "dist-packages", "*.pyc.*")
CHANGED, REMOVED, ADDED = "json/__init__.py", "this.py", "json/greeting.py"


def prepare(source: Path, library: Path) -> bool:
    """Make ``source`` hold a pristine copy of the library; return whether anything was done."""
    copy, complete = source / "stdlib", source / ".complete"
    done = False
    if not complete.exists():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(library, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        complete.touch()
        done = True
    with times_of_directories_kept(copy):
        for name in (CHANGED, REMOVED, ADDED):
            done |= restore(library / name, copy / name)
    return done


def restore(original: Path, copy: Path) -> bool:
    """Make one file what it was; return whether it was not."""
    if not original.exists():
        existed = copy.exists()
        copy.unlink(missing_ok=True)
        return existed
    same = copy.exists() and copy.read_bytes() == original.read_bytes()
    if not same:
        shutil.copy2(original, copy)
    return not same


@contextmanager
def times_of_directories_kept(copy: Path) -> Iterator[None]:
    """Leave the times of the directories that are edited as they are: what is taken back is then all as it was."""
    before = {directory: directory.stat() for directory in {(copy / name).parent for name in (CHANGED, REMOVED, ADDED)}}
    yield
    for directory, stat in before.items():
        os.utime(directory, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit(copy: Path) -> None:
    """Change one line of one file, add a file, remove a file."""
    with times_of_directories_kept(copy):
        lines = (copy / CHANGED).read_text(encoding="utf-8").splitlines(keepends=True)
        lines[0] = lines[0].rstrip("\n") + "  # revised\n"
        (copy / CHANGED).write_text("".join(lines), encoding="utf-8")
        (copy / ADDED).write_text('print("hello from the second revision")\n', encoding="utf-8")
        (copy / REMOVED).unlink(missing_ok=True)


def differences(one: Path, other: Path) -> str:
    """Return what another program finds different between two trees; nothing when they are the same."""
    if shutil.which("rsync"):
        command = ["rsync", "-n", "-c", "-a", "--delete", "--itemize-changes", f"{one}/", f"{other}/"]
    else:
        command = ["diff", "-r", "--no-dereference", str(one), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def amount(size: float) -> str:
    """Return bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def story(facts: dict) -> str:
    """Return the last screen: what was done, what it cost, where to look."""
    built, update = (named(facts[key], "distributions", "stdlib") for key in ("built", "update"))
    first, second = links(facts["first"]), links(facts["second"])
    kept = " (the rest is kept from the last run)" if built["bytes"] < built["content_bytes"] / 20 else ""
    way = "as a patch" if update.get("patch_bytes") else "as what is new in the pack"
    rows = [
        f"    {sender:>3} -> {receiver}{amount(first.get((sender, receiver), 0)):>12}{amount(size):>12}"
        for (sender, receiver), size in second.items()
    ]
    here = Path(facts["here"])
    run, ted = nearby(facts["run"], here), nearby(facts["ted"], here) + f" --config {nearby(facts['run'], here)}/hq/etc"
    return STORY.format(
        files=built["files"],
        size=amount(built["content_bytes"]),
        pack=amount(built["bytes"]) + kept,
        update=f"{amount(max(second.values(), default=0))} over each line, {way}",
        rows="\n".join(rows),
        compared=f"{'rsync' if shutil.which('rsync') else 'diff'} found no difference",
        run=run,
        ted=ted,
        source=f"{run}/source/stdlib/",
    )


STORY = """\
WHAT HAPPENED

  Seven agents run on this machine, each with a port, a configuration and a "disk" of its own:

    hq ─┬─ s01 ─┬─ e01      hq        the Distributor: builds and signs
        │       └─ e02      s01 s02   parents: install, and pass on while they still receive
        └─ s02 ─┬─ e03      e01-e04   end nodes
                └─ e04

  1 build      Python's standard library, {files} files of {size}, became a signed revision of {pack}.
  2 send       One copy over each of the six lines; every block was checked at every hop.
  3 extract    Each of the six nodes installed it, in one transaction.
  4 update     One line of one file changed, one file added, one removed: {update}.
               {compared} between hq's source and any of the six nodes.
  5 roll back  The nodes took the update back, and hq's source its edits. All hold the first revision again:
               {compared}.

    LINE              FIRST      UPDATE
{rows}

WHERE TO LOOK

  {ted} status     who has what
  {ted} tree       the tiers
  {run}/e01/root/              what e01 installed
  {run}/e01/ted/hq/stdlib/     the revisions e01 keeps
  rsync -n -c -a --itemize-changes {source} {run}/e01/root/stdlib/
                                   prints nothing: the same bytes, modes, times and links

  make demo again works; make clean ends the agents and removes what was made here.
"""


def nearby(path: str, here: Path) -> str:
    """Return a path as one types it in the directory ``here``."""
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def links(results: dict) -> dict[tuple[str, str], int]:
    """Return the bytes on each link, summed over all sends."""
    found: dict[tuple[str, str], int] = {}
    for result in results.get("results", [results]):
        for send in result.get("sends", []):
            for edge in send["edges"]:
                pair = (edge["sender"], edge["receiver"])
                found[pair] = found.get(pair, 0) + edge["bytes"]
    return found


def named(result: dict, key: str, name: str) -> dict:
    """Return the item of a list in a result that is about the distribution ``name``."""
    return next(item for item in result[key] if item["distribution"] == name)


def main(argv: list[str]) -> int:
    """Do one part; exit code 1 says that ``check`` found differences."""
    action, *words = argv
    if action == "prepare":
        print("changed" if prepare(Path(words[0]), Path(words[1])) else "ok")  # noqa: T201
    elif action == "edit":
        edit(Path(words[0]) / "stdlib")
    elif action == "check":
        found = [differences(Path(words[0]), Path(target)) for target in words[1:]]
        print("".join(found), end="")  # noqa: T201
        return 1 if any(found) else 0
    elif action == "story":
        Path(words[0]).write_text(story(json.load(sys.stdin)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
