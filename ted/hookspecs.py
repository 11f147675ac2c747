"""The contract with plugins: the page an author of a distribution type reads.

A *distribution type* knows where its content comes from and what to do with it on arrival. A plugin is a module
(or any object) that implements the hooks below, marked with ``hookimpl``, and that its package announces under the
entry-point group ``ted``::

    [project.entry-points.ted]
    notes = "ted_notes"

What it may import of ted, and what stays as it is: ``ted`` (``hookimpl``), this module, and ``ted.errors``. The
built-in types keep to the same. ``docs/plugins.md`` has a whole example.

In which order, for one distribution::

    ted check      ted_type, the options model
    ted build      ted_type, the options model, ted_build            on the Distributor
    ted extract    ted_type, the options model, ted_extract          on each Subscriber, after every signature and
    digest held ted verify     as ted extract, in check mode; ted_verify
    ted rollback   the engine undoes; ted_rollback

Rules:
 * Only the plugin of the distribution's type is called. *Wrappers* (``@hookimpl(wrapper=True)``) of other plugins
   may stand around ``ted_build`` and ``ted_extract`` of every type.
 * A hook may raise an error of ``ted.errors``, whose message and hint are shown as they are. Any other exception
   becomes a ``PluginError`` that names the plugin.
 * A plugin that cannot be loaded breaks its own type only; ``ted types`` tells why.
 * Hooks are called in processes of their own, one at a time for one distribution of one Distributor.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from ted.content.entry import Entry, Kind
from ted.content.revision import Hole
from ted.content.walk import Excludes

if TYPE_CHECKING:
    import click
    from pydantic import BaseModel

__all__ = [
    "Attributes", "BuildContext", "Drift", "Entry", "Excludes", "Hole", "InstallContext", "Item", "Kind", "Previous",
    "Transaction", "TypeInfo", "hookimpl", "hookspec",
]  # fmt: skip

hookimpl = pluggy.HookimplMarker("ted")
hookspec = pluggy.HookspecMarker("ted")


@dataclass(frozen=True)
class TypeInfo:
    """What a distribution type says about itself.

    .. versionadded:: 0.1
    """

    name: str
    """What inventories write as ``type``."""
    description: str
    """One sentence."""
    options: type[BaseModel]
    """Model of the distribution's ``options``. Forbid unknown fields (``extra="forbid"``) and describe each field."""
    available: Callable[[], str | None] = lambda: None
    """Says in a few words why this type cannot work on this machine; ``None`` when it can. A Subscriber on which it
    cannot records the distribution as ``skipped`` and still relays it."""
    build_available: Callable[[], str | None] | None = None
    """The same for building, where that needs less than extracting; ``None``: as ``available``."""
    recheck: Callable[[Any], bool] = lambda _options: False
    """Whether these options ask to re-check what is installed at each extract time, and to repair it."""


@dataclass(frozen=True)
class Drift:
    """Something installed that is not as it was extracted.

    .. versionadded:: 0.1
    """

    path: str
    """Where, absolute."""
    what: str
    """``missing``, ``content``, ``attributes``, ``kind``, ``extra``, ``failed`` (it cannot be extracted there, with
    ``on_error: continue``), ``command`` (``path`` is one that is still to be run) or a type's own word."""
    before: str | None = None
    """What is there now, in words."""
    after: str | None = None
    """What should be there, in words."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something a type installs that is no path, such as a package, and what becomes of it.

    .. versionadded:: 0.1
    """

    name: str
    """What people call it."""
    what: str
    """What happens, in a word of the type's: ``installed``, ``upgraded``, ``erased``, ``unchanged``."""
    before: str | None = None
    """Its version before; ``None`` when it was not there."""
    after: str | None = None
    """Its version afterwards; ``None`` when it is gone. The same as ``before``: nothing happens to it."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a file, directory or link looks like from outside; ``None`` leaves that part alone.

    .. versionadded:: 0.1
    """

    mode: int | None = None
    """Permission bits, set-id and sticky bits included; links have none."""
    owner: int | None = None
    group: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] | None = None
    """Exactly these of the namespaces ted carries (``user.``, POSIX ACLs, ``security.capability``); others stay."""


class BuildContext(Protocol):
    """What ``ted_build`` works with.

    Places in the content tree are relative paths with ``/``; the type's tree is its own, and two files may not
    have one place.

    .. versionadded:: 0.1
    """

    @property
    def distribution(self) -> str:
        """The distribution's name."""

    @property
    def options(self) -> Any:
        """The distribution's options, as the model of ``TypeInfo`` that validated them."""

    @property
    def log(self) -> logging.Logger:
        """Where to say what happens; warnings are shown to whoever builds."""

    @property
    def scratch(self) -> Path:
        """A directory of this distribution's own that stays from build to build, for what was downloaded."""

    @property
    def former_options(self) -> Mapping[str, Any] | None:
        """The options the current revision was built with, as they travel.

        ``None`` when there is no revision yet, the one there is damaged, or a new one is asked for in any case.
        """

    def keep_former(self) -> None:
        """Let the current revision stay what it is, whatever changed: this build makes none. Only with one there."""

    def progress(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Say how far a long download is (``None``: of how much is not known); shown where a person looks.

        May be called often, and by any thread.
        """

    def add_tree(
        self,
        source: str | Path,
        at: str,
        *,
        exclude: Sequence[str] = (),
        contents_only: bool = False,
        outside_links: Literal["refuse", "keep"] = "refuse",
    ) -> None:
        """Add a directory (or one file) of this machine below ``at``; it is read when the hook has returned.

        Args:
            source: What to add, absolute.
            at: Place in the content tree.
            exclude: Patterns as rsync has them, to be left out.
            contents_only: The directory's content goes to ``at`` itself, not below it under the directory's name.
            outside_links: Whether links that are absolute or lead out of ``source`` are an error, or kept as they
            are.

        Raises:
            EmptySourceError: There is nothing.
        """

    def add_file(self, path: str, source: str | Path) -> None:
        """Add one file of this machine as ``path``; it is read when the hook has returned."""

    def add_bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file with this content as ``path``."""


class Transaction(Protocol):
    """Everything a type changes on a Subscriber goes through this; nothing happens before the hook has returned.

    Then all of it is done, or nothing: an error, a kill or a power cut in the middle is undone or finished, and a
    later rollback takes it back. In check mode the same calls only foretell. ``root`` is an absolute directory
    (made if missing) and may be reached through links; ``path`` is relative to it, and a link on the way below
    ``root`` is refused. Parents come before what they hold, and a path is acted on once.

    .. versionadded:: 0.1
    """

    def write(
        self,
        root: str,
        path: bytes,
        chunks: Iterable[bytes | Hole],
        *,
        size: int,
        attributes: Attributes | None = None,
    ) -> None:
        """Make ``path`` a file of ``size`` bytes; ``chunks`` is read at once, in check mode not at all."""

    def symlink(self, root: str, path: bytes, target: bytes, *, attributes: Attributes | None = None) -> None:
        """Make ``path`` a symbolic link to ``target``."""

    def hardlink(self, root: str, path: bytes, first: bytes) -> None:
        """Make ``path`` another name of the file ``first`` below the same root."""

    def mkdir(
        self, root: str, path: bytes = b"", *, attributes: Attributes | None = None, replace_link: bool = False
    ) -> None:
        """Make ``path`` a directory; its attributes are set when everything below it is in place."""

    def delete(self, root: str, path: bytes) -> None:
        """Remove ``path`` and all below it, never through a link; nothing there is fine."""

    def attributes(self, root: str, path: bytes, attributes: Attributes) -> None:
        """Set the attributes of what is at ``path``."""

    def run(self, command: list[str], *, undo: list[str] | None = None, timeout_s: float = 300.0) -> None:
        """Run a command (no shell) when everything before it is done; ``undo`` takes it back.

        ``undo`` is run when the command failed or was cut off too, maybe more than once: it must do no harm then. A
        word that is ``sys.executable`` stands for the Python that ted runs with when the command is run.
        """

    def keep(self, name: str, chunks: Iterable[bytes | Hole]) -> str:
        """Put a file beside the undo log, for commands of this transaction, and return its absolute path.

        It stays as long as the transaction can be rolled back; in check mode until the hook's caller is done. Commands
        may name the path: it is followed when ted's working directory moves.
        """

    def tell(self, item: Item) -> None:
        """Say what becomes of something that is no path; it is in the result, also where nothing happens to it."""

    def look(self, root: str, path: bytes) -> os.stat_result | None:
        """Return the status of what is at ``path`` now, links not followed; ``None`` when nothing is."""


class Previous(Protocol):
    """The revision that is installed now, for types that only want to do what changed.

    .. versionadded:: 0.1
    """

    @property
    def revision(self) -> str:
        """Its time stamp."""

    def entries(self, at: str = "") -> Iterator[Entry]:
        """Yield its entries at and below ``at``, sorted by path components."""

    def read(self, entry: Entry) -> Iterator[bytes | Hole]:
        """Yield the content of one of its files, as ``InstallContext.read`` does."""


class InstallContext(Protocol):
    """What ``ted_extract``, ``ted_verify`` and ``ted_rollback`` work with.

    .. versionadded:: 0.1
    """

    @property
    def distributor(self) -> str:
        """Who made it."""

    @property
    def distribution(self) -> str:
        """Its name."""

    @property
    def revision(self) -> str:
        """The time stamp of what is extracted (or was rolled back)."""

    @property
    def options(self) -> Any:
        """The options it was built with, validated by the model of this machine's plugin."""

    @property
    def variables(self) -> Mapping[str, str]:
        """What ``%NAME%`` stands for here, unexpanded."""

    @property
    def check(self) -> bool:
        """Only foretell: nothing may be changed, not even through other ways than the transaction."""

    @property
    def recheck(self) -> bool:
        """Compare what is installed byte by byte, whatever size and time say."""

    @property
    def previous(self) -> Previous | None:
        """The revision installed before; ``None`` if there is none, or its content is not kept."""

    @property
    def transaction(self) -> Transaction:
        """The way to change anything."""

    @property
    def log(self) -> logging.Logger:
        """Where to say what happens; warnings are shown and recorded."""

    def expand(self, text: str) -> str:
        """Return ``text`` with ``%NAME%`` replaced.

        Raises:
            VariableError: A name is unknown on this node.
        """

    def entries(self, at: str = "") -> Iterator[Entry]:
        """Yield the entries of the type's content tree at and below ``at``, sorted by path components."""

    def read(self, entry: Entry) -> Iterator[bytes | Hole]:
        """Yield the content of a file in pieces of at most 4 MiB, verified; a hard link yields its file's."""

    def problems(
        self,
        *,
        on_error: Literal["fail", "continue"] = "fail",
        on_locked: Literal["fail", "kill"] = "fail",
        retries: int = 3,
    ) -> None:
        """Say, before anything else, what happens when something cannot be done; see the File type's options."""

    def place(
        self,
        at: str,
        root: str,
        *,
        overwrite: Literal["always", "newer", "never"] = "always",
        synchronize: bool = False,
        exclude: Sequence[str] = (),
        remove: Sequence[str] = (),
        owner: str | int | None = None,
        group: str | int | None = None,
        mode: int | None = None,
    ) -> None:
        """Make the directory ``root`` hold what the content tree holds at ``at``; what is so already is left alone.

        Args:
            at: Place in the content tree.
            root: Absolute path on this machine, variables expanded.
            overwrite: Which existing files are replaced: ``always``; ``newer``: those older than the distribution's;
                ``never``.
            synchronize: Delete what the distribution does not hold, below ``root`` only and never through a link.
            exclude: Patterns of what ``synchronize`` leaves alone.
            remove: Paths below ``root`` that must not be there.
            owner: Instead of the source's, for everything.
            group: Instead of the source's, for everything.
            mode: Instead of the source's, for files; directories can also be entered by whoever may read them.

        Raises:
            OptionsError: The distribution holds what ``remove`` names.
            UnsafePathError: A path would leave ``root``, or a link stands on the way.
            TargetError: Something at the target cannot be read or staged.
        """


class Hooks:
    """The hooks; a plugin implements those it needs."""

    @hookspec
    def ted_type(self) -> TypeInfo:  # type: ignore[empty-body]
        """Describe the distribution type that this plugin brings.

        Called once in a process, before anything else of the plugin. Must not touch files or the network. A plugin
        that brings no type (wrappers, commands) leaves it out.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_build(self, build: BuildContext) -> None:
        """Gather the content of a distribution.

        Called on the Distributor each time the distribution is built, also when nothing changed: what was added
        decides whether there is a new revision, so the same sources must give the same content tree. Sources added
        with ``add_tree`` and ``add_file`` are read after this has returned. Killed in the middle, nothing of the
        build is left and the former revision stays.

        Args:
            build: What to gather, and what to add it to.

        Raises:
            BuildError: It cannot be gathered; the former revision stays.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_extract(self, install: InstallContext) -> None:
        """Plan what makes this machine have the revision.

        Called after signatures and digests held, the platform matched and an interrupted transaction was brought
        to an end; not at all for a revision that is installed already. Plans in ``install.transaction`` (or with
        ``install.place``); the engine commits when this has returned. In check mode (``install.check``) it is
        called the same way. Called again after a kill.

        Args:
            install: The revision, this node, and the transaction.

        Raises:
            InstallError: It cannot be applied; nothing was changed.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_verify(self, install: InstallContext) -> list[Drift]:  # type: ignore[empty-body]
        """Return what is installed and not as it was extracted, beyond files.

        Files need no hook: the engine runs ``ted_extract`` in check mode with ``install.recheck`` and reports what
        it would change. Nothing may be changed here.

        Args:
            install: The installed revision, in check mode.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_rollback(self, install: InstallContext) -> None:
        """Do what is left to do after the engine has undone this revision's transaction.

        The engine puts files, links, attributes and commands back by itself; most types leave this hook out. What
        is planned here in ``install.transaction`` is committed afterwards and cannot be undone.

        Args:
            install: The revision that was taken back.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_sample(self, bench: Any) -> Any:
        """Return a small distribution of this type, with which the contract suite puts it to the test.

        Called only by ``pytest --ted-type NAME``, once for each check, before any other hook; import what it needs
        inside. ``docs/testing-a-type.md`` tells what a sample says. Left out, one is derived from the options model
        where the names of the options tell enough.

        Args:
            bench: A ``ted.testing.Bench``: where to make sources, where the target is, what to call at the end.

        Returns:
            A ``ted.testing.Sample``.

        .. versionadded:: 0.1
        """

    @hookspec
    def ted_cli_command(self) -> click.Command:  # type: ignore[empty-body]
        """Return a command that is added to ``ted`` under its own name; ted's own commands win.

        .. versionadded:: 0.1
        """
