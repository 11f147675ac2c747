"""Replace ``%NAME%`` in targets and texts by what this node says.

Rules:
 * ``%NAME%`` is replaced by the variable's value; upper and lower case are the same. ``{{ NAME }}`` means the
   same; only a name may stand between the braces, nothing is computed.
 * ``%%`` is one percent sign. A lone one is an error, not a guess.
 * ``%ENV:NAME%`` is the variable NAME of the environment ted runs in, spelled exactly; only asked for that way, so
   that nobody's environment changes a path by accident.
 * Origins: predefined, then the Subscriber's own (``ted_variables``), which win. Values may hold variables again.
 * An unknown name, or one that comes back to itself, is an error that names it: nothing is extracted to a
   half-expanded path.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ted.errors import VariableError

_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_TOKEN = re.compile(rf"%%|%(?P<percent>(?:ENV:)?{_NAME})%|\{{\{{(?P<braces>.*?)\}}\}}|%", re.DOTALL | re.IGNORECASE)
_WHOLE_NAME = re.compile(_NAME)
_ENVIRONMENT = "ENV:"
MAX_TEXT_CHARACTERS = 64 << 10
MAX_DEPTH = 32

PREDEFINED = {
    "BASE_PATH": "Directory of the Python environment ted is installed in.",
    "CONFIG_PATH": "This node's configuration directory.",
    "DEST_VOLUME": "Volume that targets start from: `/`, unless the Subscriber says otherwise.",
    "IP_ADDRESS": "This node's address.",
    "LOAD_PATH": "Directory the ted program is started from.",
    "LOG_PATH": "Directory of the agent's log.",
    "PLUGINS_PATH": "Directory of the built-in distribution types.",
    "PROPERTIES_PATH": "File of this node's settings.",
    "SERVER_DN": "This node's whole name: `name.realm`.",
    "SERVER_NAME": "This node's name.",
    "TED_PATH": "Directory of the engine.",
    "TREE_NAME": "Name of the realm this node belongs to.",
    "WORKING_PATH": "This node's working directory.",
}


def names_in(text: str) -> set[str]:
    """Return the names, in upper case, that a text asks of ``ted_variables`` or of ted; the environment's left out."""
    found = (match["percent"] or match["braces"] or "" for match in _TOKEN.finditer(text))
    return {name.strip().upper() for name in found if name and not name.strip().upper().startswith(_ENVIRONMENT)}


def predefined(
    *,
    node: str,
    config_directory: Path,
    working_directory: Path,
    address: str | None = None,
    realm: str | None = None,
) -> dict[str, str]:
    """Return the predefined variables of this node; see ``PREDEFINED`` for what each means."""
    engine = Path(__file__).resolve().parent.parent
    values = {
        "BASE_PATH": sys.prefix,
        "CONFIG_PATH": str(config_directory),
        "DEST_VOLUME": "/",
        "IP_ADDRESS": address or _own_address(),
        "LOAD_PATH": str(Path(sys.executable).parent),
        "LOG_PATH": str(working_directory / ".ted"),
        "PLUGINS_PATH": str(engine.parent / "ted_plugins"),
        "PROPERTIES_PATH": str(config_directory / "node.yml"),
        "SERVER_DN": f"{node}.{realm}" if realm else node,
        "SERVER_NAME": node,
        "TED_PATH": str(engine),
        "TREE_NAME": realm or "",
        "WORKING_PATH": str(working_directory),
    }
    return {name: value.replace("%", "%%") for name, value in values.items()}


def _own_address() -> str:
    """Return the address this host's name stands for; loopback where it stands for none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


class Variables(Mapping[str, str]):
    """What names stand for on this node; reads as a mapping of upper-case names to unexpanded values.

    Args:
        predefined: Values ted brings; see ``predefined``.
        user: The Subscriber's own, which win.
        environment: For ``%ENV:NAME%``; this process's when ``None``.
    """

    def __init__(
        self,
        predefined: Mapping[str, str] | None = None,
        user: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._values: dict[str, str] = {}
        for origin in (predefined or {}, user or {}):
            for name, value in origin.items():
                if not _WHOLE_NAME.fullmatch(name):
                    raise VariableError(
                        f"{name!r}: not a variable's name", hint="letters, digits, `_`, `.` and `-`, a letter first"
                    )
                self._values[name.upper()] = str(value)
        self._environment = os.environ if environment is None else environment

    def __getitem__(self, name: str) -> str:
        return self._values[name.upper()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def expand(self, text: str) -> str:
        """Return ``text`` with every variable replaced.

        Raises:
            VariableError: A name is unknown, comes back to itself, or a percent sign stands alone.
        """
        return self._expand(text, ())

    def _expand(self, text: str, inside: tuple[str, ...]) -> str:
        def value(match: re.Match[str]) -> str:
            found = match[0]
            if found == "%%":
                return "%"
            if found == "%":
                raise VariableError(
                    f"{text!r}: a percent sign stands alone", hint="write %% for a percent sign, %NAME% for a variable"
                )
            return self._value((match["percent"] or match["braces"] or "").strip(), text, inside)

        expanded = _TOKEN.sub(value, text)
        if len(expanded) > MAX_TEXT_CHARACTERS:
            raise VariableError(f"{text[:80]!r}: expands to more than {MAX_TEXT_CHARACTERS} characters")
        return expanded

    def _value(self, name: str, text: str, inside: tuple[str, ...]) -> str:
        if name.upper().startswith(_ENVIRONMENT):
            return self._from_environment(name[len(_ENVIRONMENT) :], text)
        if not _WHOLE_NAME.fullmatch(name):
            raise VariableError(
                f"{text!r}: {name!r} is no variable's name", hint="only a name may stand between {{ and }}"
            )
        key = name.upper()
        if key in inside or len(inside) >= MAX_DEPTH:
            raise VariableError(
                f"%{key}% refers to itself: " + " -> ".join((*inside, key)),
                hint="see ted_variables of this host",
            )
        if key not in self._values:
            raise VariableError(
                f"%{name}% is not defined on this node (in {text!r})",
                hint=f"define {name} in ted_variables of this host",
            )
        return self._expand(self._values[key], (*inside, key))

    def _from_environment(self, name: str, text: str) -> str:
        if name not in self._environment:
            raise VariableError(
                f"%ENV:{name}% is not in the environment ted runs in (in {text!r})",
                hint="set it where the agent is started, or use a variable of ted_variables",
            )
        return self._environment[name]
