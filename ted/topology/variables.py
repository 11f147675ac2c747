"""Every ``ted_`` variable: who may have it, and how its value is read.

Rules:
 * A variable that stands in no table here is a mistake, and the nearest known name is suggested.
 * A reader takes the raw value and returns the value of the model, or raises ``ValueFormatError``.
 * Blank (unset, null, empty string) means the default; readers never see a blank.
 * Values may have been rendered from templates, so ``"7465"`` is as good as ``7465``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ted.errors import ValueFormatError, shorten
from ted.topology.model import OutputRates
from ted.topology.names import NAME_RULE, is_name, suggestion
from ted.topology.schedule import parse_refresh_schedule, parse_schedule
from ted.topology.units import parse_bytes, parse_duration_s, parse_rate_bytes_s

Reader = Callable[[object], Any]

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+|/\S*", re.ASCII)
_DATABASE = re.compile(r"postgres(?:ql)?(?:\+\w+)?://|sqlite(?:\+\w+)?:///.")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII)
MAX_TEXT = 65536


@dataclass(frozen=True)
class Variable:
    """One variable of the contract: ``field`` is its place in the model."""

    name: str
    field: str
    read: Reader


def is_blank(value: object) -> bool:
    """Say whether a value means "not set"."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_vaulted(value: object) -> bool:
    """Say whether a value is one that Ansible has encrypted and nobody here has opened."""
    return isinstance(value, Mapping) and "__ansible_vault" in value


def flag(value: object) -> bool:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.strip().lower() in ("true", "yes", "on")
    raise ValueFormatError(f"{shorten(value)} is neither true nor false")


def whole(least: int, most: int) -> Reader:
    """Return a reader of whole numbers from ``least`` to ``most``."""

    def read(value: object) -> int:
        text = value.strip() if isinstance(value, str) else value
        fits = isinstance(text, int) or (isinstance(text, str) and re.fullmatch(r"\d{1,12}", text, re.ASCII))
        if isinstance(value, bool) or not fits or not least <= int(text) <= most:  # type: ignore[call-overload]
            raise ValueFormatError(f"{shorten(value)} is not a whole number from {least} to {most}")
        return int(text)  # type: ignore[call-overload, no-any-return]

    return read


def one_of(*words: str) -> Reader:
    """Return a reader that takes one of ``words``."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            near = suggestion(value.lower(), words) if isinstance(value, str) else None
            raise ValueFormatError(f"{shorten(value)} is none of {', '.join(words)}", hint=near)
        return value

    return read


def text(value: object) -> str:
    """Read a text of one or more characters, no NUL among them."""
    if not isinstance(value, str) or "\0" in value or len(value) > MAX_TEXT:
        raise ValueFormatError(f"{shorten(value)} is not a text")
    return value


def name(value: object) -> str:
    """Read the name of a host, channel or distribution."""
    if not is_name(value):
        hint = f'put it in quotes: "{value}"' if isinstance(value, int) else NAME_RULE
        raise ValueFormatError(f"{shorten(value)} is not a name", hint=hint)
    return str(value)


def names(value: object) -> tuple[str, ...]:
    """Read a list of names; sorted, each once."""
    if not isinstance(value, list | tuple):
        raise ValueFormatError(f"{shorten(value)} is not a list of names", hint=f"write [{shorten(value)}]")
    return tuple(sorted({name(item) for item in value}))


def texts(value: object) -> tuple[str, ...]:
    """Read a list of texts; their order counts."""
    if not isinstance(value, list | tuple):
        raise ValueFormatError(f"{shorten(value)} is not a list", hint=f"write [{shorten(value)}]")
    return tuple(text(item) for item in value)


def mapping(value: object) -> dict[str, Any]:
    """Read a mapping with words as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueFormatError(f"{shorten(value)} is not a mapping")
    return dict(value)


def without_brackets(address: str) -> str:
    """Return an IPv6 address without the brackets that some write around it."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def address(value: object) -> str:
    """Read a host name, an IPv4 or an IPv6 address (brackets are taken off)."""
    given = text(value).strip()
    bare = without_brackets(given)
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    labels = given.removesuffix(".").split(".")
    if len(given) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or _looks_numeric(labels):
        raise ValueFormatError(
            f"{shorten(value)} is neither a host name nor an IP address",
            hint="the port has its own: ted_port",
        )
    return given


def _looks_numeric(labels: list[str]) -> bool:
    return labels[-1].isdigit() and len(labels) > 1  # 10.0.0.300: a mistyped address, never a name


def directory(value: object) -> str:
    """Read an absolute path."""
    given = text(value)
    if not given.startswith("/") or ".." in given.split("/"):
        raise ValueFormatError(f"{shorten(value)} is not an absolute path", hint="start it with /")
    return given.rstrip("/") or "/"


def output_rates(value: object) -> OutputRates:
    """Read ``{high, medium, low}``, each a rate or blank."""
    rates = mapping(value)
    found: dict[str, int] = {}
    for priority, rate in rates.items():
        if priority not in ("high", "medium", "low"):
            near = suggestion(priority, ("high", "medium", "low"))
            raise ValueFormatError(f"{shorten(priority)} is no priority", hint=near or "high, medium or low")
        if not is_blank(rate):
            found[priority] = _named(priority, parse_rate_bytes_s)(rate)
    return OutputRates(**found)


def message_levels(value: object) -> dict[str, int]:
    """Read ``{log: 4, mail: 1}``: 0 (nothing) to 6 (everything) for each way of telling."""
    levels = mapping(value)
    return {sink: _named(sink, whole(0, 6))(level) for sink, level in levels.items() if not is_blank(level)}


def variables(value: object) -> dict[str, str]:
    """Read names and values for ``%NAME%``; names are told apart without regard to case."""
    found: dict[str, str] = {}
    folded: dict[str, str] = {}
    for key, item in mapping(value).items():
        if not _VARIABLE_NAME.fullmatch(key):
            raise ValueFormatError(f"{shorten(key)} cannot stand between % signs", hint="letters, digits, _ . - only")
        if key.upper() in folded:
            raise ValueFormatError(f"{shorten(key)} and {folded[key.upper()]!r} are the same variable")
        folded[key.upper()] = key
        if not is_vaulted(item):
            found[key] = _named(key, _scalar_text)(item)
    return found


def _scalar_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:
            raise ValueFormatError(shorten(value)) from None
    return text(value)


def sources(value: object) -> tuple[str, ...]:
    """Read an ordered list of URLs (or absolute paths)."""
    found = texts(value)
    for url in found:
        if not _URL.fullmatch(url):
            raise ValueFormatError(f"{shorten(url)} is not a URL", hint="e.g. https://mirror.example/ted or /mnt/usb")
    return found


def database_url(value: object) -> str:
    """Read where records are kept: SQLite in a file, or a PostgreSQL server. Its password is never told."""
    given = text(value)
    if "{{" not in given and not _DATABASE.match(given):
        kind = re.match(r"[A-Za-z][A-Za-z0-9.+-]*(?=:)", given, re.ASCII)
        raise ValueFormatError(
            f"{kind[0]}: is not the URL of a database that ted knows" if kind else "is not the URL of a database",
            hint="sqlite:////absolute/path.sqlite or postgresql://user:password@host/name",
        )
    return given


def platforms(value: object) -> tuple[dict[str, Any], ...]:
    """Read a list of facts that must match; one mapping alone is a list of one."""
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise ValueFormatError(f"{shorten(value)} is not a list of facts", hint="write [{os_family: Debian}]")
    return tuple(mapping(item) for item in items)


def options(value: object) -> dict[str, Any]:
    """Read a type's own options; the type judges them."""
    return mapping(value)


def _named(what: str, read: Reader) -> Reader:
    def named(value: object) -> Any:
        try:
            return read(value)
        except ValueFormatError as error:
            raise ValueFormatError(f"{what}: {error.message}", hint=error.hint) from None

    return named


def positive_duration_s(value: object) -> float:
    """Read a duration of more than nothing, in seconds."""
    seconds = parse_duration_s(value)
    if seconds <= 0:
        raise ValueFormatError(f"{shorten(value)} is no time at all", hint="leave it out for the default")
    return seconds


def _table(*rows: tuple[str, str, Reader]) -> dict[str, Variable]:
    return {row[0]: Variable(*row) for row in rows}


NODE_VARIABLES = _table(
    ("ted_address", "address", address),
    ("ted_port", "port", whole(1, 65535)),
    ("ted_working_directory", "working_directory", directory),
    ("ted_config_directory", "config_directory", directory),
    ("ted_input_rate", "input_rate_bytes_s", parse_rate_bytes_s),
    ("ted_output_rates", "output_rates", output_rates),
    ("ted_max_concurrent", "max_concurrent", whole(1, 100_000)),
    ("ted_fill_spare_slots", "fill_spare_slots", flag),
    ("ted_min_rate", "min_rate_bytes_s", parse_rate_bytes_s),
    ("ted_timeout", "timeout_s", positive_duration_s),
    ("ted_min_free", "min_free_bytes", parse_bytes),
    ("ted_retry_interval", "retry_interval_s", positive_duration_s),
    ("ted_retry_for", "retry_for_s", parse_duration_s),
    ("ted_message_levels", "message_levels", message_levels),
    ("ted_log_max_age", "log_max_age_s", positive_duration_s),
    ("ted_transport", "transport", one_of("https", "http")),
)

# ted_distributions and ted_routing_hierarchy hold more than one mistake at a time: `parse` reads them.
DISTRIBUTOR_VARIABLES = _table(
    ("ted_unlisted_parent", "unlisted_parent", one_of("via_parent", "direct")),
    ("ted_refresh_schedule", "refresh_schedule", parse_refresh_schedule),
    ("ted_database_url", "database_url", database_url),
)
DISTRIBUTOR_STRUCTURES = ("ted_distributions", "ted_routing_hierarchy")

SUBSCRIBER_VARIABLES = _table(
    ("ted_parent", "parent", name),
    ("ted_poll_interval", "poll_interval_s", positive_duration_s),
    ("ted_extract_schedule", "extract_schedule", parse_schedule),
    ("ted_variables", "variables", variables),
    ("ted_inactive_channels", "inactive_channels", names),
    ("ted_fallbacks", "fallbacks", sources),
    ("ted_fallback_when", "fallback_when", one_of("unreachable", "stale")),
    ("ted_source_order", "source_order", one_of("listed", "latency", "subnet")),
)

# What an External Subscriber may have: an address, a parent, channels. Its own realm says the rest.
EXTERNAL_VARIABLES = ("ted_address", "ted_port", "ted_transport", "ted_parent", "ted_inactive_channels")

DISTRIBUTION_FIELDS = _table(
    ("type", "type", name),
    ("channels", "channels", names),
    ("priority", "priority", one_of("high", "medium", "low")),
    ("active", "active", flag),
    ("max_revisions", "max_revisions", whole(1, 1_000_000)),
    ("encrypt", "encrypt", flag),
    ("build_schedule", "build_schedule", parse_schedule),
    ("send_after_build", "send_after_build", flag),
    ("platforms", "platforms", platforms),
    ("on_failure", "on_failure", one_of("rollback", "leave")),
    ("patches", "patches", one_of("auto", "small", "fast", "none")),
    ("open_packages", "open_packages", one_of("none", "fast", "all")),
    ("verify", "verify", texts),
    ("options", "options", options),
    ("description", "description", text),
)

CHANNEL_FIELDS = _table(
    ("send_schedule", "send_schedule", parse_schedule),
    ("active", "active", flag),
)

# Read by the collection's role and playbooks, not by the topology.
ROLE_VARIABLES = frozenset(
    {
        "ted_agent_user",
        "ted_allow_incomplete",
        "ted_channel",
        "ted_distribution",
        "ted_executable",
        "ted_package",
        "ted_pip_extra_args",
        "ted_purge",
        "ted_python",
        "ted_realm",
        "ted_realm_authority",
        "ted_revision",
        "ted_send_timeout",
        "ted_service",
        "ted_type_packages",
        "ted_venv",
    }
)

# Of those, the ones that narrow a single run.
RUN_VARIABLES = frozenset({"ted_channel", "ted_distribution", "ted_revision"})

KNOWN_VARIABLES = frozenset(
    {"ted_channels", *NODE_VARIABLES, *DISTRIBUTOR_VARIABLES, *DISTRIBUTOR_STRUCTURES, *SUBSCRIBER_VARIABLES}
    | ROLE_VARIABLES
)
