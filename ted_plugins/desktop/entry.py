"""The files a desktop reads: entries, kinds of files, defaults, folders (freedesktop.org's specifications).

Everything here takes text and gives text; nothing is opened.

Rules:
 * What an entry starts is led to where the application was put, unless its paths are kept.
 * Field codes such as ``%f`` stay as they are; only ``%NAME%`` with two letters or more is a variable.
 * Keys that are preserved keep the value found on the Subscriber, where there is one.
 * What other people wrote into a shared file (``mimeapps.list``) stays, line by line.

Sources: Desktop Entry Specification 1.5, Shared MIME-info 0.21, MIME applications associations 1.0.1, Menu 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from xml.etree import ElementTree as ET

from ted_plugins.desktop.options import Application, MimeType

GROUP = "[Desktop Entry]"
_VARIABLE = re.compile(r"%(?:ENV:)?[A-Za-z_][A-Za-z0-9_.-]+%|\{\{.*?\}\}")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_RESERVED = re.compile(r"[\s\"'\\><~|&;$*?#()`]")
_MIME_NAMESPACE = "http://www.freedesktop.org/standards/shared-mime-info"
_DEFAULTS = "[Default Applications]"


def expanded(text: str, expand: Callable[[str], str]) -> str:
    """Return ``text`` with its variables replaced; field codes such as ``%f`` stay."""
    return _VARIABLE.sub(lambda match: expand(match[0]), text)


def entry_of(
    application: Application,
    *,
    directory: str | None,
    launcher: tuple[str, str] | None,
    expand: Callable[[str], str],
    preserved: Mapping[str, str],
) -> str:
    """Return the text of the application's desktop entry.

    Args:
        application: What it starts.
        directory: Where its files are on this machine; ``None`` leaves the paths of the entry as they are.
        launcher: Program that starts it from one of several sources, and the directory that each of them stands for;
            ``None``: it is started directly.
        expand: Replaces variables.
        preserved: Keys and values that win, from the entry that is there.
    """
    keys = {"Type": "Application"} | {
        key: expanded(value, expand) for key, value in application.entry.items()
    }
    if directory is not None:
        keys |= _led_to(directory, keys, application)
    if launcher is not None and "Exec" in keys:
        script, root = launcher
        program, rest = _first_word(keys["Exec"])
        keys["Exec"] = f"{quoted(script)} {quoted(program.removeprefix(f'{root}/'))}{rest}"
        keys.pop("TryExec", None)
    if application.mime and "MimeType" not in keys:
        keys["MimeType"] = "".join(f"{kind.type};" for kind in application.mime)
    if application.icons:
        keys.setdefault("Icon", application.name)
    keys["X-TED-Version"] = application.version
    keys |= preserved
    return "\n".join([GROUP, *(f"{key}={value}" for key, value in keys.items())]) + "\n"


def _led_to(directory: str, keys: Mapping[str, str], application: Application) -> dict[str, str]:
    """Return the keys that hold paths, led from the source (or from nowhere) to ``directory``."""
    roots = [source if source.endswith("/") else f"{source.rpartition('/')[0]}/" for source in application.sources]

    def lead(path: str) -> str:
        for root in roots:
            if path.startswith(root):
                return f"{directory}/{path.removeprefix(root)}"
        return f"{directory}/{path}" if "/" in path and not path.startswith("/") else path

    led = {key: lead(keys[key]) for key in ("TryExec", "Path", "Icon") if key in keys}
    if "Exec" in keys:
        program, rest = _first_word(keys["Exec"])
        led["Exec"] = f"{quoted(lead(program))}{rest}"
    return led


def _first_word(command: str) -> tuple[str, str]:
    """Return the program of an Exec line and what follows it."""
    match = _QUOTED.match(command.strip())
    if match is None:
        return "", ""
    word = re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2]
    return word, command.strip()[match.end() :]


def quoted(word: str) -> str:
    """Return a word as an Exec line spells it."""
    if not _RESERVED.search(word):
        return word
    return '"' + re.sub(r'(["`$\\])', r"\\\1", word) + '"'


def values_of(text: str, keys: Iterable[str]) -> dict[str, str]:
    """Return those keys of a desktop entry that are there, with their values."""
    found: dict[str, str] = {}
    wanted, inside = set(keys), False
    for line in text.splitlines():
        if line.startswith("["):
            inside = line.strip() == GROUP
        elif inside and "=" in line:
            key, _, value = line.partition("=")
            if key.strip() in wanted:
                found[key.strip()] = value.strip()
    return found


def launcher_of(sources: Sequence[str]) -> str:
    """Return a shell script that starts the program named first from the first source that has it."""
    places = " ".join("'" + source.replace("'", "'\\''") + "'" for source in sources)
    return (
        "#!/bin/sh\n"
        "# Starts an application from the first place that has it.\n"
        'program=$1; shift\n'
        f"for place in {places}; do\n"
        '    [ -x "$place/$program" ] && exec "$place/$program" "$@"\n'
        "done\n"
        'echo "$program: in none of the places it is started from" >&2\n'
        "exit 127\n"
    )


def in_turn(sources: Sequence[str], who: str) -> list[str]:
    """Return the sources beginning with another one for each ``who``, always the same for the same."""
    first = int.from_bytes(sha256(who.encode()).digest()[:4], "big") % len(sources)
    return [*sources[first:], *sources[:first]]


def mime_package(kinds: Sequence[MimeType]) -> bytes | None:
    """Return the shared-mime-info package that makes kinds of files known; ``None`` when they are known anyway."""
    told = [kind for kind in kinds if kind.comment or kind.patterns]
    if not told:
        return None
    root = ET.Element("mime-info", xmlns=_MIME_NAMESPACE)
    for kind in told:
        element = ET.SubElement(root, "mime-type", type=kind.type)
        if kind.comment:
            ET.SubElement(element, "comment").text = kind.comment
        for pattern in kind.patterns:
            ET.SubElement(element, "glob", pattern=pattern)
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root) + b"\n"


def with_defaults(text: str, defaults: Mapping[str, str]) -> str:
    """Return ``mimeapps.list`` with these defaults (kind of file -> entry) set, and everything else as it was."""
    lines = text.splitlines()
    if _DEFAULTS not in lines:
        lines += [_DEFAULTS]
    at = lines.index(_DEFAULTS) + 1
    end = next((number for number in range(at, len(lines)) if lines[number].startswith("[")), len(lines))
    section = [line for line in lines[at:end] if line.partition("=")[0].strip() not in defaults]
    while section and not section[-1].strip():
        section.pop()
    section += [f"{kind}={entry}" for kind, entry in sorted(defaults.items())]
    return "\n".join([*lines[:at], *section, *([""] if end < len(lines) else []), *lines[end:]]) + "\n"


def folder_of(name: str) -> str:
    """Return the text that describes a folder of the menu."""
    return f"{GROUP}\nType=Directory\nName={name}\n"
