"""What an inventory may say of a distribution of packages.

Every option that reaches a package manager is one of a fixed list; nothing of an inventory becomes a word of a command
line but names, paths and versions that were checked for what they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ted.options import Expanded
from ted_plugins.packages.model import ARCHITECTURE, NAME, VERSION
from ted_plugins.sources.rate import Size
from ted_plugins.sources.web import WebAccess, web_address

_SHA256 = re.compile("[0-9a-f]{64}")
_FTP = re.compile(r"(ftp|ftps|ftpes)://[A-Za-z0-9.:\[\]-]+/[^\s?#\x00-\x1f]*")
_WEB_ONLY = (
    "token", "token_file", "token_env", "headers", "query", "proxy_username", "proxy_password", "proxy_password_file",
    "certificate", "key", "key_password",
)  # fmt: skip
_SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def _local(path: str) -> str:
    if not path.startswith(("/", "{{")):
        raise ValueError(f"{path!r} is not absolute: it is a path on the Distributor")
    return path


def is_ftp(url: str) -> bool:
    """Return whether it is an address of an FTP server, with TLS or without."""
    return url.startswith(("ftp:", "ftps:", "ftpes:"))


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _file_address(url: str) -> None:
    """Check an address of one file.

    Raises:
        ValueError: It is none, or holds a user or password.
    """
    _address(url)
    if url.endswith("/"):
        raise ValueError("the address is a directory: name a package file")


def _address(url: str) -> None:
    """Check an address of a file or a directory.

    Raises:
        ValueError: It is none, or holds a user or password.
    """
    if not is_ftp(url):
        web_address(url)
    elif not _FTP.fullmatch(url) or not _has_port(url):
        raise ValueError("an FTP address is ftp://HOST[:PORT]/PATH (or ftpes, ftps), without user and password")


def _root(path: str) -> str:
    if not path.startswith(("/", "%", "{{")) or path.startswith("%%"):
        raise ValueError(f"{path!r} is not absolute: it begins with / or with a %NAME% that does")
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} must not contain '..'")
    return path


def _name(name: str) -> str:
    if not NAME.fullmatch(name) and not name.startswith("{{"):
        raise ValueError(f"{name!r} is no name of a package")
    return name


LocalPath = Annotated[str, AfterValidator(_local)]
PackageName = Annotated[str, AfterValidator(_name)]


class Source(WebAccess):
    """Where packages come from: a file here, an URL, or a repository; and how a server is reached."""

    path: LocalPath | None = Field(None, description="Package on the Distributor's disk; a pattern adds all, by name.")
    url: str | None = Field(None, description="Package at an http, https, ftp, ftpes or ftps address.")
    sha256: str | None = Field(None, description="What the file at the URL must be, hex.")
    repository: str | None = Field(None, description="Address (as of `url`) or directory of a repository.")
    name: PackageName | None = Field(None, description="Package of the repository.")
    version: str | None = Field(None, description="Version in the repository; the newest one when unset.")
    arch: str | None = Field(None, description="Architecture in the repository; needed where it has several.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Take a plain string for a path or an URL."""
        if not isinstance(value, str):
            return value
        return {"url": value} if "://" in value else {"path": value}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if [self.path, self.url, self.repository].count(None) != 2:
            raise ValueError("needs one of `path`, `url` and `repository`")
        if (self.repository is None) != (self.name is None):
            raise ValueError("`repository` and `name` belong together")
        if (self.version is not None or self.arch is not None) and self.repository is None:
            raise ValueError("`version` and `arch` choose in a `repository`")
        if self.url is not None and not self.url.startswith("{{"):
            _file_address(self.url)
            self._refuse_web_only(self.url)
        if self.sha256 is not None and (self.url is None or not _SHA256.fullmatch(self.sha256)):
            raise ValueError("`sha256` is 64 hex digits, and belongs to an `url`")
        return self._words()

    def _refuse_web_only(self, url: str) -> None:
        given = [name for name in _WEB_ONLY if is_ftp(url) and getattr(self, name)]
        if given or (is_ftp(url) and not self.verify_tls):
            raise ValueError(f"`{(given or ['verify_tls'])[0]}` is for http and https only")
        if is_ftp(url) and self.proxy not in (None, "none") and not str(self.proxy).startswith("http:"):
            raise ValueError("the proxy of an FTP address is http://HOST[:PORT], and lets CONNECT through")

    def _words(self) -> Self:
        where = self.repository
        if where is not None and not where.startswith(("/", "{{")):
            _address(where)
            self._refuse_web_only(where)
        for pattern, word in ((VERSION, self.version), (ARCHITECTURE, self.arch)):
            if word is not None and not pattern.fullmatch(word):
                raise ValueError(f"{word!r} is no version or architecture")
        return self


class DebSource(Source):
    """Where Debian packages come from."""

    suite: str | None = Field(None, description="Suite of the repository, such as `stable`; unset: a flat repository.")
    component: str = Field("main", description="Component of the suite.")

    @model_validator(mode="after")
    def _of_a_suite(self) -> Self:
        if self.suite is None and "component" in self.model_fields_set and self.component != "main":
            raise ValueError("a `component` needs its `suite`")
        if self.suite is not None and self.repository is None:
            raise ValueError("`suite` chooses in a `repository`")
        for word in (self.suite, self.component):
            if word is not None and not _SUITE.fullmatch(word):
                raise ValueError(f"{word!r} is no suite or component")
        return self


class PackageOptions(BaseModel):
    """What both kinds of packages share."""

    model_config = ConfigDict(extra="forbid")

    packages: Sequence[Source] = Field(default_factory=list, description="The packages, in this order.")
    erase: list[PackageName] = Field(default_factory=list, description="Names of packages that must not be there.")
    operation: Literal["upgrade", "freshen", "install"] = Field(
        "upgrade", description="upgrade: install, or replace an older version; freshen: only replace an older version; "
        "install: beside other versions, replacing none.",
    )  # fmt: skip
    downgrade: bool = Field(False, description="Replace newer versions too; otherwise they stay, with a warning.")
    order: Literal["dependencies", "listed"] = Field(
        "dependencies", description="Whether the package manager orders by dependencies, or keeps the order given."
    )
    nodeps: bool = Field(False, description="Install or erase although dependencies are missing then.")
    replace_files: bool = Field(False, description="Packages may replace files of other packages.")
    signature: Literal["required", "none"] = Field("required", description="Whether packages must be signed.")
    keys: list[LocalPath] = Field(
        default_factory=list, description="Files of public keys on the Distributor that packages may be signed with; "
        "they travel with the distribution.",
    )  # fmt: skip
    repository_keys: list[LocalPath] = Field(
        default_factory=list, description="Files of public keys that metadata of the repositories must be signed with."
    )
    fetch_rate: Size | None = Field(None, description="Bytes per second of all downloads together; unset: no limit.")
    root: Annotated[Expanded, AfterValidator(_root)] = Field(
        "/", description="Root of the system to install into; %NAME% allowed."
    )
    timeout_s: int = Field(1800, ge=1, le=86_400, description="Time limit of the installation.")
    verify: bool = Field(False, description="Re-check what is installed at each extract time, and repair drift.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.packages and not self.erase:
            raise ValueError("needs `packages` or `erase`")
        return self


class RpmOptions(PackageOptions):
    """Options of the type rpm."""

    through: Literal["auto", "dnf", "rpm"] = Field(
        "auto", description="auto: dnf where it is there and can do what is asked for, else rpm."
    )
    scripts: bool = Field(True, description="Run the packages' scriptlets.")
    docs: bool = Field(True, description="Install files marked as documentation.")
    database: Annotated[str, AfterValidator(_root)] | None = Field(
        None, description="Directory of the rpm database below the root; what rpm says when unset."
    )


class DebOptions(PackageOptions):
    """Options of the type deb."""

    packages: Sequence[DebSource] = Field(default_factory=list, description="The packages, in this order.")
    operation: Literal["upgrade", "freshen", "install"] = Field(
        "upgrade", description="upgrade: install, or replace an older version; freshen: only replace an older version; "
        "install: replacing none, which is an error where another version is there.",
    )  # fmt: skip
    through: Literal["auto", "apt", "dpkg"] = Field(
        "auto", description="auto: apt orders and tests where it is there; dpkg installs in any case."
    )
    purge: bool = Field(False, description="Erase configuration files with a package.")

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if self.signature == "required" and self.packages and not self.keys:
            raise ValueError(
                "`signature: required` needs `keys` to check the packages' own signatures (debsigs) with; few packages "
                "carry one: `signature: none` relies on the distribution's signature, which always holds"
            )
        return self
