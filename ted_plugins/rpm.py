"""The type rpm: RPM packages, installed through dnf or rpm. Everything is in ``ted_plugins.packages``."""

from __future__ import annotations

from typing import Any

from ted import hookimpl
from ted.hookspecs import BuildContext, Drift, InstallContext, TypeInfo
from ted_plugins.packages import gather, plan
from ted_plugins.packages.options import RpmOptions
from ted_plugins.packages.rpm import Rpm, unavailable
from ted_plugins.packages.rpm_file import read


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo(
        "rpm", "RPM packages, installed through dnf or rpm", RpmOptions, available=unavailable,
        build_available=lambda: None, recheck=_recheck,
    )  # fmt: skip


def _recheck(options: RpmOptions) -> bool:
    return options.verify


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Gather the packages, their index and the keys."""
    gather.build("rpm", read, build)


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Install what is not there in the version listed."""
    plan.extract("rpm", Rpm, install)


@hookimpl
def ted_verify(install: InstallContext) -> list[Drift]:
    """Tell of packages in another version that an extraction would leave."""
    return plan.verify(Rpm, install)


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.packages import rpm_sample

    return rpm_sample(bench)
