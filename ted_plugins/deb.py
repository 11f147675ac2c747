"""The type deb: Debian packages, installed through dpkg. Everything is in ``ted_plugins.packages``."""

from __future__ import annotations

from typing import Any

from ted import hookimpl
from ted.hookspecs import BuildContext, Drift, InstallContext, TypeInfo
from ted_plugins.packages import gather, plan
from ted_plugins.packages.deb import Deb, unavailable
from ted_plugins.packages.deb_file import read
from ted_plugins.packages.options import DebOptions


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo(
        "deb", "Debian packages, installed through dpkg", DebOptions, available=unavailable,
        build_available=lambda: None, recheck=_recheck,
    )  # fmt: skip


def _recheck(options: DebOptions) -> bool:
    return options.verify


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Gather the packages, their index and the keys."""
    gather.build("deb", read, build)


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Install what is not there in the version listed."""
    plan.extract("deb", Deb, install)


@hookimpl
def ted_verify(install: InstallContext) -> list[Drift]:
    """Tell of packages in another version that an extraction would leave."""
    return plan.verify(Deb, install)


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.packages import deb_sample

    return deb_sample(bench)
