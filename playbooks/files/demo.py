"""The parts of the demonstration that are not ted: a source, edits in it, a check, the story told at the end.

Rules:
 * ``prepare`` may be called again at any time: a copy that was cut off is made anew, former edits are taken back.
 * ``check`` asks another program (rsync, else diff) whether two trees are the same, and prints nothing but differences.
 * Nothing here imports ted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

LEFT_OUT = ("__pycache__", "site-packages", "dist-packages")
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
    for name in (CHANGED, REMOVED, ADDED):
        done |= restore(library / name, copy / name)
    shutil.copystat(library / "json", copy / "json")
    shutil.copystat(library, copy)
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


def edit(source: Path) -> None:
    """Change one line of one file, add a file, remove a file."""
    changed = source / "stdlib" / CHANGED
    lines = changed.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[0] = lines[0].rstrip("\n") + "  # revised\n"
    changed.write_text("".join(lines), encoding="utf-8")
    (source / "stdlib" / ADDED).write_text('print("hello from the second revision")\n', encoding="utf-8")
    (source / "stdlib" / REMOVED).unlink(missing_ok=True)


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
    rows = [
        line(f"{pair[0]:>3} -> {pair[1]}", amount(first.get(pair, 0)), amount(size)) for pair, size in second.items()
    ]
    run, ted = facts["run"], f"{facts['ted']} --config {facts['run']}/hq/etc"
    again = built["bytes"] < built["content_bytes"] / 20
    return "\n".join(
        [
            "WHAT HAPPENED",
            "  Seven agents run on this machine: hq (the Distributor), s01 and s02 (parents), e01 to e04 (end nodes).",
            f"  hq built a signed revision of Python's standard library: {built['files']} files,"
            f" {amount(built['content_bytes'])}, packed into {amount(built['bytes'])}" + ("." if not again else ""),
            *(["  (so little because this is not the first run: most of it was kept)."] if again else []),
            "  It went to s01 and s02, and from them to e01 to e04. Each line carried it once, each node checked every",
            "  block and passed it on while it still received, and each installed it in one transaction.",
            "  Then one line of one file was changed, one file added, one removed:"
            f" the second revision adds {amount(update['bytes'])}"
            + (f" and travels as a patch of {amount(update['patch_bytes'])}." if update.get("patch_bytes") else "."),
            "  Every node installed that too, byte for byte what hq has (another program compared), and took it back:",
            "  they hold the first revision again, on purpose, and hq's source the second.",
            "",
            line("BYTES", "first", "update"),
            *rows,
            "",
            "WHERE TO LOOK",
            f"  {ted} status      who has what",
            f"  {ted} tree        the tiers",
            f"  {run}/e01/root/           what e01 installed",
            f"  {run}/e01/ted/hq/stdlib/  the revisions e01 keeps",
            "  playbooks/site.yml        the main job: ansible-playbook -i inventories/demo playbooks/site.yml",
            "  playbooks/uninstall.yml   the end; with -e ted_purge=true also of keys, revisions and records",
        ]
    )


def line(link: str, first: str, second: str) -> str:
    """Return one row of the table of bytes."""
    return f"  {link:<12}{first:>12}{second:>12}"


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
        edit(Path(words[0]))
    elif action == "check":
        found = [differences(Path(words[0]), Path(target)) for target in words[1:]]
        print("".join(found), end="")  # noqa: T201
        return 1 if any(found) else 0
    elif action == "story":
        told = story(json.load(sys.stdin))
        Path(words[0]).write_text(told + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
