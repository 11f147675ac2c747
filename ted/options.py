"""What models of options are made of: a strict base, and a target that is ready.

For plugins, like ``ted.hookspecs``; what is here stays as it is. A type that puts files into one directory needs no
model of its own but this one, with what is special about it added::

    class Options(Target):
        text: str = Field(min_length=1, description="What the message says.")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

if TYPE_CHECKING:
    from ted.hookspecs import InstallContext

__all__ = ["Expanded", "Mode", "Options", "Target", "TargetPath", "expanded_texts", "octal_mode", "target_path"]

_MODE = re.compile("[0-7]{3,5}")


def octal_mode(value: object) -> int | None:
    """Return the mode that an inventory means: a string in octal, or what YAML made of one where that is plain.

    Raises:
        ValueError: It means none, or could mean two.
    """
    if value is None:
        return None
    if isinstance(value, int):
        # YAML makes 420 of 0644 and leaves 400 as it is: taken where only the first reading is a mode one would set.
        if _is_usual(value) and not (_MODE.fullmatch(str(value)) and _is_usual(int(str(value), 8))):
            return value
        raise ValueError("write the mode as a string, in octal: '0644'")
    if not isinstance(value, str) or not _MODE.fullmatch(value) or int(value, 8) > 0o7777:
        raise ValueError("a mode is a string in octal, from '0000' to '7777'")
    return int(value, 8)


def _is_usual(mode: int) -> bool:
    """Say whether the owner may read, the group no more than the owner, and others no more than the group."""
    owner, group, others = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    return 0 <= mode <= 0o7777 and owner & 4 == 4 and group & ~owner == 0 and others & ~group == 0


def target_path(path: str) -> str:
    """Return a path on the Subscriber: absolute, or one that a ``%NAME%`` makes so.

    Raises:
        ValueError: It is not.
    """
    if not path.startswith(("/", "%", "{{")) or path.startswith("%%"):
        raise ValueError(f"{path!r} is not absolute: targets begin with / or with a %NAME% that does")
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} must not contain '..'")
    return path


@dataclass(frozen=True)
class Known:
    """Marks a field of ``Target`` by its name, so that the contract suite knows what must show."""

    what: str


_EXPANDED = "may hold %NAME%"
Expanded = Annotated[str, _EXPANDED]
"""A text in which ``%NAME%`` stands for a variable of the Subscriber; ``install.expand`` it."""
TargetPath = Annotated[Expanded, AfterValidator(target_path)]
"""A path on the Subscriber; ``install.expand`` it."""
Mode = Annotated[
    int | None,
    BeforeValidator(octal_mode, json_schema_input_type=str | None),
    PlainSerializer(lambda mode: None if mode is None else f"{mode:04o}", return_type=str | None),
]
"""A file mode, written in octal; travels as it was written."""


class Options(BaseModel):
    """Base of a model of options: what it does not know is refused, and errors do not repeat what was given."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


def expanded_texts(options: BaseModel) -> Iterator[str]:
    """Yield every text in a model that is ``Expanded`` (a ``TargetPath`` is), those of models in it too."""
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        inside = [mark for part in get_args(field.annotation) for mark in getattr(part, "__metadata__", ())]
        is_expanded = _EXPANDED in (*field.metadata, *inside)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, BaseModel):
                yield from expanded_texts(each)
            elif is_expanded and isinstance(each, str):
                yield each


class Target(Options):
    """One directory on the Subscriber: the options for how content is put there, and ``place``, which keeps to them."""

    path: Annotated[TargetPath, Known("path")] = Field(
        "%DEST_VOLUME%", min_length=1, description="Directory on the subscriber; %NAME% allowed, %% is a percent sign."
    )
    synchronize: Annotated[bool, Known("synchronize")] = Field(
        False, description="Delete what the distribution does not hold, inside path only."
    )
    owner: Annotated[str | int | None, Known("owner")] = Field(
        None, description="Owner of everything; unset keeps the source's."
    )
    group: Annotated[str | int | None, Known("group")] = Field(
        None, description="Group of everything; unset keeps the source's."
    )
    mode: Annotated[Mode, Known("mode")] = Field(
        None, description="Mode of files, an octal string; directories can also be entered. Unset keeps the source's."
    )

    @model_validator(mode="after")
    def _spares_the_machine(self) -> Self:
        if self.synchronize and not self.path.strip("/."):
            raise ValueError("`synchronize` at / would delete everything else on the machine: name a directory")
        return self

    def place(self, install: InstallContext, at: str, **more: Any) -> None:
        """Plan that ``path`` holds what the content tree holds at ``at``; ``more`` as for ``install.place``.

        Raises:
            InstallError: As ``install.place``.
        """
        install.place(
            at, install.expand(self.path), synchronize=self.synchronize, owner=self.owner, group=self.group,
            mode=self.mode, **more,
        )  # fmt: skip
