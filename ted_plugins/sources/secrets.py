"""Passwords and tokens of sources.

Rules:
 * In a model they are ``SecretStr``: what is dumped, printed or put into a revision is a mask of fixed length, so a
   changed password alone makes no new revision, and a receiver's model still takes what travels.
 * They may instead lie in a file of the Distributor or in a variable of its environment; then not even the inventory
   holds them.
 * An address never holds one: ``without_credentials`` is for messages about addresses that somebody else wrote.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, SecretStr

from ted.errors import BuildError

MAX_SECRET_BYTES = 64 * 1024
_VAULT = "$ANSIBLE_VAULT;"


def _or_vaulted(value: object) -> object:
    """Take a value that nobody has decrypted yet for what it is: ``ansible-inventory`` shows it as a mapping."""
    return value.get("__ansible_vault", value) if isinstance(value, Mapping) else value


Secret = Annotated[SecretStr, BeforeValidator(_or_vaulted, json_schema_input_type=str)]
"""An option that is a secret. What is still encrypted passes where it is only looked at (``ted check``)."""


def reveal(
    value: SecretStr | None, *, file: str | None = None, env: str | None = None, what: str = "password"
) -> str | None:
    """Return the secret that an option holds, or that lies in ``file`` or in the variable ``env``.

    To be called when building, and nowhere else: a receiver has neither the value nor the file.

    Args:
        value: The option itself.
        file: Path of a file on the Distributor; one line end at its end does not count.
        env: Name of a variable of the environment.
        what: What to call it in an error.

    Raises:
        BuildError: It is not there, or others may read the file.
    """
    if value is not None:
        if value.get_secret_value().startswith(_VAULT):
            raise BuildError(
                f"{what}: is still encrypted", hint="let a play hand the inventory on: playbooks/refresh.yml"
            )
        return value.get_secret_value()
    if file is not None:
        return _of_file(file, what)
    if env is not None:
        if env not in os.environ:
            raise BuildError(f"{what}: no variable {env} in the environment", hint="set it where ted builds")
        return os.environ[env]
    return None


def _of_file(path: str, what: str) -> str:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise BuildError(f"{what}: {path}: {error.strerror}", hint="the file lies on the Distributor") from error
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise BuildError(f"{what}: others than its owner and group may read {path}", hint=f"chmod 600 {path}")
    if len(data) > MAX_SECRET_BYTES:
        raise BuildError(f"{what}: {path} is longer than {MAX_SECRET_BYTES} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise BuildError(f"{what}: {path} is not UTF-8") from None


def without_credentials(url: str) -> str:
    """Return an address as it may be printed: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def scrubbed(text: str, secrets: tuple[str | None, ...]) -> str:
    """Return ``text``, a message of a library or of another program, with every secret in it masked."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "**********")
    return text
