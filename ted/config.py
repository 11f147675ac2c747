"""A node's own configuration: ``node.yml`` in its configuration directory.

Rules:
 * Keys are spelled like the inventory's variables without ``ted_``; the same units are allowed.
 * An unknown key is an error: a typo must not silently mean the default.
 * Nothing secret is in it but what the inventory put there; the file is the owner's alone (0600).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ted.content.record import is_name
from ted.content.working import WorkingDirectory
from ted.errors import ConfigError
from ted.topology.units import parse_bytes, parse_duration_s, parse_rate_bytes_s

FILE_NAME = "node.yml"
DEFAULT_PORT = 7465

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Rate = Annotated[int, BeforeValidator(parse_rate_bytes_s)]
Seconds = Annotated[float, BeforeValidator(parse_duration_s), Field(gt=0)]


def _spelled_out(schedule: Any) -> Any:
    """Return a schedule of one word, such as ``immediately``, as the mapping that it is short for."""
    if schedule not in ("", "never", "immediately") and isinstance(schedule, str):
        raise ValueError(f"{schedule!r} is neither `immediately` nor `never`, nor a mapping such as `daily: ...`")
    return ({schedule: True} if schedule else None) if isinstance(schedule, str) else schedule


Timetable = Annotated[dict[str, Any] | None, BeforeValidator(_spelled_out)]


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("letters, digits and . _ @ + -, not first a dot, 128 at most")
    return value


class OutputRates(BaseModel):
    """Bytes per second for each priority; ``None`` is unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    high: Rate | None = None
    medium: Rate | None = None
    low: Rate | None = None


LIMITS = {"input_rate", "output_rates", "max_concurrent", "fill_spare_slots"}


class NodeConfig(BaseModel):
    """What one node must know about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: Annotated[str, AfterValidator(_name)] = Field(description="This node's inventory name.")
    config_directory: Path = Field(Path("/etc/ted"), description="Where this file lies.")
    working_directory: Path = Field(Path("/var/lib/ted"), description="Revisions, catalog copies and state.")
    address: str | None = Field(None, description="Address others reach this node at.")
    listen: str | None = Field(None, description="Address to bind; every one when unset.")
    port: int = Field(DEFAULT_PORT, ge=0, le=65535)
    transport: Literal["https", "http"] = "https"
    parent: str | None = None
    parent_address: str | None = None
    parent_port: int = Field(DEFAULT_PORT, ge=1, le=65535)
    distributor: bool = False
    database_url: str | None = Field(None, description="Where records are kept; unset: in a file here.")
    input_rate: Rate | None = None
    output_rates: OutputRates = OutputRates()
    max_concurrent: int | None = Field(None, ge=1)
    fill_spare_slots: bool = False
    min_rate: Rate = 1024
    timeout: Seconds = 300.0
    min_free: Bytes | None = None
    retry_interval: Seconds = 120.0
    retry_for: Seconds = 1800.0
    poll_interval: Seconds | None = Field(None, description="How often to ask the parent; unset: it says by itself.")
    message_levels: dict[str, int] = Field(default_factory=dict)
    log_max_age: Seconds | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    extract_schedule: Timetable = None
    inactive_channels: list[str] = Field(default_factory=list)
    fallbacks: list[str] = Field(default_factory=list)
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
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls.parse(data, config_directory, where=str(path))

    @classmethod
    def parse(cls, data: Any, config_directory: Path, *, where: str) -> Self:
        """Validate what was read; ``where`` names it in errors."""
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: must be a mapping of settings, is {type(data).__name__}")
        try:
            return cls.model_validate({**data, "config_directory": config_directory})
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise ConfigError(f"{where}: " + "; ".join(problems)) from error

    def is_but_for_limits(self, other: NodeConfig) -> bool:
        """Say whether ``other`` differs in nothing but the limits, which a running agent takes over."""
        return self.model_dump(exclude=LIMITS) == other.model_dump(exclude=LIMITS)

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
