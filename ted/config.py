"""A node's own configuration: ``node.yml`` in its configuration directory.

Rules:
 * Keys are spelled like the inventory's variables without ``ted_``; the same units are allowed.
 * An unknown key is an error: a typo must not silently mean the default.
 * Nothing secret is in it but what the inventory put there; the file is the owner's alone (0600).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from ted.content.working import WorkingDirectory
from ted.errors import ConfigError, ValueFormatError, shorten
from ted.topology.model import DEFAULT_PORT, OutputRates
from ted.topology.names import suggestion
from ted.topology.units import parse_bytes, parse_duration_s, parse_rate_bytes_s
from ted.topology.variables import (
    Reader,
    directory,
    flag,
    is_blank,
    is_vaulted,
    mapping,
    message_levels,
    name,
    names,
    one_of,
    output_rates,
    positive_duration_s,
    text,
    texts,
    variables,
    whole,
    without_brackets,
)

FILE_NAME = "node.yml"
_ANEW = "playbooks/install.yml writes it anew"


def _path(value: object) -> Path:
    return Path(directory(value))


def _host(value: object) -> str:
    """Read where a host is reached; Ansible's own name of it, which may stand here, is not judged."""
    return without_brackets(text(value).strip())


def _secret_text(value: object) -> str:
    """Read a text that no message may show."""
    try:
        return text(value)
    except ValueFormatError:
        found = "one with NUL, or too long" if isinstance(value, str) else type(value).__name__
        raise ValueFormatError(f"must be a text, is {found}") from None


def _variables(value: object) -> dict[str, str]:
    """Read names and values for ``%NAME%``, of which no message may show a value."""
    if not isinstance(value, Mapping):
        raise ValueFormatError(f"must be a mapping, is {type(value).__name__}")
    for key, item in value.items():
        if not isinstance(item, int | float | None):
            try:
                _secret_text(item)
            except ValueFormatError as error:
                hint = "Ansible opens its vault when install.yml writes this file" if is_vaulted(item) else None
                raise ValueFormatError(f"{shorten(key)} {error.message}", hint=hint) from None
    return variables(value)


def _timetable(value: object) -> dict[str, Any]:
    """Read a schedule as it is written; one of one word, such as ``immediately``, as the mapping it is short for."""
    if not isinstance(value, str):
        return mapping(value)
    if value not in {"never", "immediately"}:
        raise ValueFormatError(
            f"{shorten(value)} is neither `immediately` nor `never`, nor a mapping such as `daily: ...`"
        )
    return {value: True}


_READERS: dict[str, Reader] = {
    "node": name,
    "config_directory": _path,
    "working_directory": _path,
    "address": _host,
    "listen": _host,
    "port": whole(0, 65535),
    "transport": one_of("https", "http"),
    "parent": text,
    "parent_address": _host,
    "parent_port": whole(1, 65535),
    "distributor": flag,
    "database_url": _secret_text,
    "input_rate": parse_rate_bytes_s,
    "output_rates": output_rates,
    "max_concurrent": whole(1, 1 << 31),
    "fill_spare_slots": flag,
    "min_rate": parse_rate_bytes_s,
    "timeout": positive_duration_s,
    "min_free": parse_bytes,
    "retry_interval": positive_duration_s,
    "retry_for": parse_duration_s,
    "poll_interval": positive_duration_s,
    "message_levels": message_levels,
    "log_max_age": positive_duration_s,
    "variables": _variables,
    "extract_schedule": _timetable,
    "inactive_channels": names,
    "fallbacks": texts,
    "fallback_when": one_of("unreachable", "stale"),
    "source_order": one_of("listed", "latency", "subnet"),
}
"""How each key is read: what the inventory allows for the variable of that name is read as there. What is blank has its
default."""
LIMITS = ("input_rate", "output_rates", "max_concurrent", "fill_spare_slots")


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What one node must know about itself; ``config_directory`` is where this file was found, whatever stands in it.

    ``listen`` is the address to bind, every one when unset; a ``database_url`` is where records are kept, in a file of
    the working directory when unset; without ``poll_interval`` the parent says by itself what is new.
    """

    node: str
    config_directory: Path = Path("/etc/ted")
    working_directory: Path = Path("/var/lib/ted")
    address: str | None = None
    listen: str | None = None
    port: int = DEFAULT_PORT
    transport: Literal["https", "http"] = "https"
    parent: str | None = None
    parent_address: str | None = None
    parent_port: int = DEFAULT_PORT
    distributor: bool = False
    database_url: str | None = None
    input_rate: int | None = None
    output_rates: OutputRates = field(default_factory=OutputRates)
    max_concurrent: int | None = None
    fill_spare_slots: bool = False
    min_rate: int = 1024
    timeout: float = 300.0
    min_free: int | None = None
    retry_interval: float = 120.0
    retry_for: float = 1800.0
    poll_interval: float | None = None
    message_levels: dict[str, int] = field(default_factory=dict)
    log_max_age: float | None = None
    variables: dict[str, str] = field(default_factory=dict)
    extract_schedule: dict[str, Any] | None = None
    inactive_channels: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    fallback_when: Literal["unreachable", "stale"] = "unreachable"
    source_order: Literal["listed", "latency", "subnet"] = "listed"

    @classmethod
    def load(cls, config_directory: Path) -> Self:
        """Read ``node.yml`` below ``config_directory``.

        Raises:
            ConfigError: It is missing, not YAML, or a key is unknown or wrong; every problem is named.
        """
        config_directory = config_directory.absolute()  # the agent in the background runs in /
        path = config_directory / FILE_NAME
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: this host is not set up as a node",
                hint="run playbooks/install.yml for it, or name another directory with --config or TED_CONFIG",
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", hint="run it as the user that the agent runs as") from error
        except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {_what_is_wrong(error)}", hint=_ANEW) from error
        return cls.parse(data, config_directory, where=str(path))

    @classmethod
    def parse(cls, data: Any, config_directory: Path, *, where: str) -> Self:
        """Validate what was read; ``where`` names it in errors."""
        if not isinstance(data, dict):
            found = "nothing" if data is None else f"a {type(data).__name__}"
            raise ConfigError(f"{where}: must be a mapping of settings, holds {found}", hint=_ANEW)
        values, problems = _read(data)
        if "node" not in values and not any(problem.startswith("node: ") for problem, _ in problems):
            problems.append(("node: is missing", "this node's name in the inventory"))
        if problems:
            hint = problems[0][1] if len(problems) == 1 else None
            told = [problem if len(problems) == 1 or not hint else f"{problem} ({hint})" for problem, hint in problems]
            raise ConfigError(f"{where}: " + "; ".join(told), hint=hint)
        return cls(**values | {"config_directory": config_directory})

    @property
    def limits(self) -> dict[str, Any]:
        """What a running agent takes over when this file changes."""
        return {limit: getattr(self, limit) for limit in LIMITS}

    def is_but_for_limits(self, other: NodeConfig) -> bool:
        """Say whether ``other`` differs in nothing but the limits, which a running agent takes over."""
        return replace(self, **other.limits) == other

    @property
    def working(self) -> WorkingDirectory:
        """The working directory, with the names of what is in it."""
        return WorkingDirectory(self.working_directory)

    @property
    def extracts_immediately(self) -> bool:
        """Whether the agent extracts a revision as soon as it is received."""
        return self.extract_schedule is not None and "immediately" in self.extract_schedule

    def trust_root(self, distributor: str) -> Path:
        """Where the trusted ``root.json`` of a Distributor is placed."""
        return self.config_directory / "trust" / distributor / "root.json"

    @property
    def realm_directory(self) -> Path:
        """Where this node's certificate and the realm's lie."""
        return self.config_directory / "realm"

    @property
    def keys_directory(self) -> Path:
        """Where a Distributor's signing keys lie."""
        return self.config_directory / "keys"


def _what_is_wrong(error: Exception) -> str:
    """Return what is wrong with a file, and in which line, without what stands there: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark is not None else str(error)


def _read(data: Mapping[Any, Any]) -> tuple[dict[str, Any], list[tuple[str, str | None]]]:
    """Return the values of all that is set, and each problem with its hint."""
    values: dict[str, Any] = {}
    problems: list[tuple[str, str | None]] = []
    for key, given in data.items():
        read = _READERS.get(key)
        if read is None:
            named = shorten(key).strip("'")
            problems.append((f"{named}: is no setting of a node", suggestion(named.removeprefix("ted_"), _READERS)))
        elif not is_blank(given):
            try:
                values[key] = read(given)
            except ValueFormatError as error:
                problems.append((f"{key}: {error.message}", error.hint))
    return values, problems
