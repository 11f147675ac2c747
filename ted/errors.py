"""Every error ted raises on purpose, in one tree.

The branch says whether trying again can help; the exit code is the class's own and stays the same for ever.

* TedError                               exit  1
  x ConfigError                          exit 10   something a person wrote cannot be used
    + InventoryError                     exit 11   the inventory breaks the inventory contract
    + OptionsError                       exit 12   a distribution's options are not valid for its type
    + UnknownNameError                   exit 13   no such host, channel, distribution, revision or type
    + UsageError                         exit 14   the command's words do not fit together
    + ValueFormatError                   exit 15   a size, duration, schedule or other value cannot be read
  x RepositoryError                      exit 20   stored content or metadata is wrong
    + FormatError                        exit 21   not ted's format, or a version this ted does not know
    + DigestMismatchError                exit 22   content does not hash to the digest that was signed
      - DamagedError                     exit 22   what a sender stores is damaged; asking it again does not help
    + MissingContentError                exit 23   a frame, block or pack that should be here is not
  x TrustError                           exit 24   a signature, certificate or chain of trust does not hold
    + UntrustedDistributorError          exit 25   this node holds no root of that Distributor
    + ReplayError                        exit 26   older metadata than was already trusted
    + SlipError                          exit 27   a routing slip is forged, expired or not for this node
  x TransferError                        exit 30   a hop failed; trying again may help
    + UnreachableError                   exit 31   the other side does not answer
    + RefusedError                       exit 32   the other side answered, and will not
    + NoSpaceError                       exit 33   receiving it would go below the free-space floor
    + IncompleteError                    exit 34   not every receiver has it (yet)
    + BusyError                          exit 35   the sender is there, and this transfer has not its turn yet
    + WindowClosedError                  exit 36   the window of the send is over; the next send goes on from here
  x InstallError                         exit 40   the receiver could not apply the content
    + UnsafePathError                    exit 41   a path or link would leave the target
    + VariableError                      exit 42   a %NAME% is unknown or refers to itself
    + TargetError                        exit 43   a target file is locked or cannot be written
    + AcceptanceError                    exit 44   the distribution's own acceptance tests failed
    + NothingToRollBackError             exit 45   no earlier revision is kept
    + DriftError                         exit 46   what is installed differs from what was extracted
  x BuildError                           exit 50   a distribution could not be gathered
    + EmptySourceError                   exit 51   a source is empty or gone
    + SourceChangedError                 exit 52   a source changed while it was read
    + UnsupportedFileError               exit 53   a device, socket or other file that cannot be sent
  x PluginError                          exit 60   a distribution type is missing or broke its contract
  x AgentError                           exit 70   the agent of this node is not running or does not answer
    + RecordsError                       exit 71   the records database cannot be used now
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar

_SHOWN_LETTERS = 80
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel, _BRIEFLY.maxother = 3, _SHOWN_LETTERS

HOW_TO_MEND = "`ted verify --stored --repair` fetches it again, on its Distributor `ted build --force` makes it anew"
"""The hint where something that is stored is damaged or lacks, whichever node it is."""


def shorten(value: object) -> str:
    """Return how a message shows a value of unknown size, depth and kind."""
    try:
        shown = repr(value) if isinstance(value, str) else _BRIEFLY.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return shown if len(shown) <= _SHOWN_LETTERS else f"{shown[: _SHOWN_LETTERS - 3]}..."


class TedError(Exception):
    """Base of the tree: a message a person understands, and what to do now."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        self.data: dict[str, Any] = {}
        """What was done all the same; ``--json`` shows it beside the error."""
        super().__init__(message)

    def to_dict(self) -> dict[str, Any]:
        """Return the shape every ``--json`` command prints for an error."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class ConfigError(TedError):
    """Something a person wrote cannot be used."""

    exit_code = 10


class InventoryError(ConfigError):
    """The inventory breaks the inventory contract.

    ``problems`` holds every one of them: ``{"host", "variable", "message", "hint"}``.
    """

    exit_code = 11

    def __init__(
        self, message: str, *, problems: list[dict[str, str | None]], hint: str | None = None
    ) -> None:
        self.problems = problems
        super().__init__(message, hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the common shape, with ``problems``."""
        return super().to_dict() | {"problems": self.problems}


class OptionsError(ConfigError):
    """A distribution's options are not valid for its type."""

    exit_code = 12


class UnknownNameError(ConfigError):
    """No such host, channel, distribution, revision or type."""

    exit_code = 13


class UsageError(ConfigError):
    """The command's words do not fit together."""

    exit_code = 14


class ValueFormatError(ConfigError, ValueError):
    """A size, duration, schedule or other single value cannot be read.

    A ``ValueError`` as well, so that pydantic reports it with the setting's name.
    """

    exit_code = 15


class RepositoryError(TedError):
    """Stored content or metadata is wrong."""

    exit_code = 20


class FormatError(RepositoryError):
    """Not ted's format, or a version this ted does not know."""

    exit_code = 21


class DigestMismatchError(RepositoryError):
    """Content does not hash to the digest that was signed."""

    exit_code = 22


class DamagedError(DigestMismatchError):
    """What a sender stores is not what was signed; asking it again and again does not help."""


class MissingContentError(RepositoryError):
    """A frame, block or pack that should be here is not."""

    exit_code = 23


class TrustError(TedError):
    """A signature, certificate or chain of trust does not hold."""

    exit_code = 24


class UntrustedDistributorError(TrustError):
    """This node holds no root of that Distributor."""

    exit_code = 25


class ReplayError(TrustError):
    """Older metadata than was already trusted."""

    exit_code = 26


class SlipError(TrustError):
    """A routing slip is forged, expired or not meant for this node."""

    exit_code = 27


class TransferError(TedError):
    """A hop failed; trying again may help."""

    exit_code = 30


class UnreachableError(TransferError):
    """The other side does not answer.

    ``is_gone``: nobody took the connection; else somebody is there, or was just now.
    """

    exit_code = 31

    def __init__(self, message: str, *, hint: str | None = None, is_gone: bool = False) -> None:
        self.is_gone = is_gone
        super().__init__(message, hint=hint)


class RefusedError(TransferError):
    """The other side answered, and will not."""

    exit_code = 32


class NoSpaceError(TransferError):
    """Receiving it would go below the free-space floor."""

    exit_code = 33


class IncompleteError(TransferError):
    """Not every receiver has it (yet)."""

    exit_code = 34


class BusyError(TransferError):
    """The sender is there, and this transfer has not its turn (or its first block) yet: ask again."""

    exit_code = 35


class WindowClosedError(TransferError):
    """The window of the send is over; what came stays, and the next send goes on from there."""

    exit_code = 36
    says: ClassVar[str] = "the window of the send closed at"
    """How its message begins, in states from other nodes too."""


class InstallError(TedError):
    """The receiver could not apply the content."""

    exit_code = 40


class UnsafePathError(InstallError):
    """A path or link would leave the target."""

    exit_code = 41


class VariableError(InstallError):
    """A %NAME% is unknown or refers to itself."""

    exit_code = 42


class TargetError(InstallError):
    """A target file is locked or cannot be written.

    ``path`` is the file, ``errno`` the system's number for the reason; ``None`` where there is none.
    """

    exit_code = 43

    def __init__(
        self, message: str, *, hint: str | None = None, path: str | None = None, errno: int | None = None
    ) -> None:
        self.path, self.errno = path, errno
        super().__init__(message, hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the common shape, with ``path`` and ``errno``."""
        return super().to_dict() | {"path": self.path, "errno": self.errno}


class AcceptanceError(InstallError):
    """The distribution's own acceptance tests failed."""

    exit_code = 44


class NothingToRollBackError(InstallError):
    """No earlier revision is kept."""

    exit_code = 45


class DriftError(InstallError):
    """What is installed differs from what was extracted."""

    exit_code = 46


class BuildError(TedError):
    """A distribution could not be gathered; the former revision stays."""

    exit_code = 50


class EmptySourceError(BuildError):
    """A source is empty or gone."""

    exit_code = 51


class SourceChangedError(BuildError):
    """A source changed while it was read."""

    exit_code = 52


class UnsupportedFileError(BuildError):
    """A device, socket or other file that cannot be sent."""

    exit_code = 53


class PluginError(TedError):
    """A distribution type is missing or broke its contract."""

    exit_code = 60


class AgentError(TedError):
    """The agent of this node is not running or does not answer."""

    exit_code = 70


class RecordsError(AgentError):
    """The records database cannot be used now; trying again may help."""

    exit_code = 71
