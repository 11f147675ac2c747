"""Whether a distribution may be extracted on this machine.

Rules:
 * ``platforms`` is a list of mappings of facts; none means everywhere. The machine matches a mapping if every fact
   in it matches, and may extract if it matches one.
 * Facts are named and spelled as Ansible's: ``os_family distribution version architecture hostname``. A value is a
   text with ``*`` and ``?``, or a list of them; upper and lower case are the same.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

_FAMILIES = {
    "debian": "Debian", "ubuntu": "Debian", "raspbian": "Debian", "rhel": "RedHat", "fedora": "RedHat",
    "centos": "RedHat", "rocky": "RedHat", "almalinux": "RedHat", "ol": "RedHat", "amzn": "RedHat", "suse": "Suse",
    "opensuse": "Suse", "sles": "Suse", "arch": "Archlinux", "alpine": "Alpine", "gentoo": "Gentoo",
}  # fmt: skip
_NAMES = {
    "debian": "Debian", "ubuntu": "Ubuntu", "rhel": "RedHat", "fedora": "Fedora", "centos": "CentOS", "rocky":
    "Rocky", "almalinux": "AlmaLinux", "sles": "SLES", "alpine": "Alpine", "arch": "Archlinux", "amzn": "Amazon",
    "ol": "OracleLinux",
}  # fmt: skip


@functools.cache
def facts() -> dict[str, str]:
    """Return the facts of this machine."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    machine = os.uname()  # as it is now: platform's own copy is of when this process, or its parent, was started
    own = release.get("ID", "").lower()
    alike = [own, *release.get("ID_LIKE", "").lower().split()]
    family = next((_FAMILIES[name] for name in alike if name in _FAMILIES), machine.sysname)
    return {
        "os_family": family,
        "distribution": _NAMES.get(own, release.get("NAME", machine.sysname)),
        "version": release.get("VERSION_ID", machine.release),
        "architecture": machine.machine,
        "hostname": machine.nodename,
    }


def mismatch(platforms: Sequence[Mapping[str, Any]], machine: Mapping[str, str] | None = None) -> str | None:
    """Return why this machine may not extract, ``None`` when it may.

    Args:
        platforms: As the distribution says; an unknown fact matches nothing.
        machine: Its facts; this one's when ``None``.
    """
    machine = facts() if machine is None else machine
    if not platforms or any(all(_matches(machine, *fact) for fact in each.items()) for each in platforms):
        return None
    wanted = " or ".join(" and ".join(f"{name} {value}" for name, value in each.items()) for each in platforms)
    own = ", ".join(f"{name} {machine.get(name, 'unknown')}" for name in dict.fromkeys(n for e in platforms for n in e))
    return f"only for {wanted}; this machine has {own}"


def _matches(machine: Mapping[str, str], name: str, wanted: Any) -> bool:
    own = machine.get(name)
    values = wanted if isinstance(wanted, list | tuple) else [wanted]
    return own is not None and any(fnmatch.fnmatchcase(own.lower(), str(value).lower()) for value in values)
