"""The File type: files and directories of the Distributor's own disk, put below targets on each Subscriber.

Rules:
 * Target number N has the content tree ``N/``; what each ``from`` names goes there by rsync's rule: with a trailing
   slash the content of the directory, without one the directory itself.
 * Nothing is deleted on a Subscriber unless ``synchronize`` or ``remove`` says so.
 * Sources are local; what lies on a network file system is warned about, for it may be away when it is built.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ted import hookimpl
from ted.errors import BuildError
from ted.hookspecs import BuildContext, InstallContext, TypeInfo
from ted.options import Expanded, TargetPath
from ted.options import octal_mode as _mode

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs", "afs", "glusterfs"}
)


def _relative(paths: list[str]) -> list[str]:
    for path in paths:
        if os.path.isabs(path) or ".." in path.split("/") or path.strip("/.") == "":
            raise ValueError(f"{path!r} must be relative and stay below the target")
    return paths


def _source_paths(paths: list[str]) -> list[str]:
    for path in paths:
        if not path.startswith(("/", "{{")):
            raise ValueError(f"{path!r} is not absolute: sources are paths on the Distributor")
    return paths


class Place(BaseModel):
    """One directory on the Subscriber, wherever its content comes from."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    path: TargetPath = Field(
        "%DEST_VOLUME%", min_length=1, description="Directory on the subscriber; %NAME% allowed, %% is a percent sign."
    )
    exclude: list[str] = Field(default_factory=list, description="Patterns of what is left out.")
    synchronize: bool = Field(False, description="Delete what the distribution does not hold, inside path only.")
    owner: str | int | None = Field(None, description="Owner of everything; unset keeps the source's.")
    group: str | int | None = Field(None, description="Group of everything; unset keeps the source's.")
    mode: Annotated[int | None, BeforeValidator(_mode, json_schema_input_type=str | None)] = Field(
        None, description="Mode of files, an octal string; directories can also be entered. Unset keeps the source's."
    )
    remove: Annotated[list[Expanded], AfterValidator(_relative)] = Field(
        default_factory=list, description="Paths below the target that must not be there."
    )

    @model_validator(mode="after")
    def _spares_the_machine(self) -> Self:
        if self.synchronize and not self.path.strip("/."):
            raise ValueError("`synchronize` at / would delete everything else on the machine: name a directory")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Travel as the inventory spells it."""
        data: dict[str, Any] = dump(self)
        if "sources" in data:
            data["from"] = data.pop("sources")
        if data["mode"] is not None:
            data["mode"] = f"{data['mode']:04o}"
        return data


class Target(Place):
    """One directory on the Subscriber, and what of the Distributor's disk goes there."""

    sources: Annotated[list[str], AfterValidator(_source_paths)] = Field(
        default_factory=list, alias="from", description="Paths on the Distributor; rsync's trailing-slash rule."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.sources and not self.remove:
            raise ValueError("needs `from` (what to put there) or `remove`")
        return self


class Placing(BaseModel):
    """How content is put below targets, wherever it comes from."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    overwrite: Literal["always", "newer", "never"] = Field("always", description="Which existing files are replaced.")
    verify: bool = Field(False, description="Re-check what was extracted at each extract time, and repair drift.")
    retries: int = Field(3, ge=0, le=100, description="Tries for a locked target file.")
    on_locked: Literal["fail", "kill"] = Field("fail", description="After the retries: fail, or end the holder.")
    on_error: Literal["fail", "continue"] = Field("fail", description="At a file that cannot be written.")
    allow_empty: bool = Field(False, description="Build even if a source is empty.")


class Options(Placing):
    """Options of the File type."""

    targets: list[Target] = Field(min_length=1, description="Where, and what.")
    outside_links: Literal["refuse", "keep"] = Field(
        "refuse", description="Links that are absolute or lead out of their source."
    )


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo("file", "Files and directories of the Distributor's disk", Options, recheck=_recheck)


def _recheck(options: Placing) -> bool:
    return options.verify


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Add every source of every target."""
    options: Options = build.options
    for number, target in enumerate(options.targets):
        for source in target.sources:
            if not os.path.isabs(source):
                raise BuildError(
                    f"{source}: not an absolute path", hint="sources of the File type lie on the Distributor's own disk"
                )
            if (kind := filesystem_of(source)) in NETWORK_FILESYSTEMS:
                build.log.warning("%s is on a network file system (%s); fetch it with a type of its own", source, kind)
            build.add_tree(
                source.rstrip("/") or "/", str(number), exclude=target.exclude,
                contents_only=source.endswith("/"), outside_links=options.outside_links,
            )  # fmt: skip


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Make every target hold its part."""
    options: Options = install.options
    place(install, options, [(target, spared(target.exclude, _names(target))) for target in options.targets])


def place(install: InstallContext, options: Placing, places: Sequence[tuple[Place, Sequence[str]]]) -> None:
    """Make each place hold what the content tree has below its number.

    Args:
        install: What ``ted_extract`` was called with.
        options: How.
        places: Each with the patterns of what ``synchronize`` spares there.
    """
    install.problems(on_error=options.on_error, on_locked=options.on_locked, retries=options.retries)
    for number, (target, spared) in enumerate(places):
        root = install.expand(target.path)
        if (kind := filesystem_of(root)) in NETWORK_FILESYSTEMS:
            install.log.warning("%s is a network share (%s): all subscribers would write to one place", root, kind)
        install.place(
            str(number), root, overwrite=options.overwrite, synchronize=target.synchronize, exclude=spared,
            remove=[install.expand(path) for path in target.remove], owner=target.owner, group=target.group,
            mode=target.mode,
        )  # fmt: skip


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.file import sample

    return sample(bench)


def _names(target: Target) -> list[str]:
    """Return the names of the sources that go to the target themselves, not their content."""
    return [os.path.basename(source) for source in target.sources if not source.endswith("/")]


def spared(exclude: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the patterns of ``exclude``, those anchored at a source also as they are seen from the target."""
    anchored = [pattern for pattern in exclude if pattern.startswith("/")]
    return [*exclude, *(f"/{glob.escape(name)}{pattern}" for name in names for pattern in anchored)]


def filesystem_of(path: str) -> str:
    """Return the kind of file system that ``path`` (or the nearest directory above it) is on; empty when unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                point = left.split()[4].replace("\\040", " ")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, right.split()[0]
    except OSError:
        return ""
    return kind
