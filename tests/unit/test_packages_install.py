"""Packages installed, upgraded, erased and rolled back by rpm, dnf, dpkg and apt, in a root of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from install_depot import DISTRIBUTOR, NAME, Depot
from package_depot import PackageDepot, Workshop

from ted.errors import InstallError, TedError
from ted.install.verify import repair, verify_installed
from ted_plugins.packages import rpm_file
from ted_plugins.packages.model import Package

WAYS = ("rpm", "dnf", "dpkg", "apt")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(params=WAYS)
def depot(tmp_path: Path, workshop: Workshop, request: pytest.FixtureRequest) -> PackageDepot:
    return PackageDepot(tmp_path, request.param, workshop)


def told(result: Any) -> list[tuple[str, str, str | None, str | None]]:
    """Return the items, releases left out: rpm's packages here are all of release 1."""

    def plain(version: str | None) -> str | None:
        return None if version is None else version.removesuffix("-1")

    return [(item["name"], item["what"], plain(item["before"]), plain(item["after"])) for item in result.things]


def test_packages_are_installed_upgraded_erased_and_rolled_back(depot: PackageDepot) -> None:
    depot.have(depot.make("mine"), depot.make("old"))
    before, files = depot.installed(), depot.files()
    depot.pack(depot.make("lib"), depot.make("app", depends="lib = 1"))
    first = depot.extract()
    assert (first.state, told(first)) == (
        "extracted", [("app", "installed", None, "1"), ("lib", "installed", None, "1")]
    )  # fmt: skip
    assert depot.installed() == before | {"lib": "1", "app": "1"}

    depot.pack(depot.make("lib", "2"), depot.make("app", "2", depends="lib = 2"), erase=["old"])
    foretold = depot.extract(check=True)
    assert depot.installed() == before | {"lib": "1", "app": "1"}
    second = depot.extract()
    assert told(second) == told(foretold) == [
        ("app", "upgraded", "1", "2"), ("lib", "upgraded", "1", "2"), ("old", "erased", "1", None)
    ]  # fmt: skip
    assert depot.installed() == {"mine": "1", "lib": "2", "app": "2"}
    assert verify_installed(depot.host, DISTRIBUTOR, NAME) == []

    foretold = depot.rollback(check=True)
    back = depot.rollback()
    assert (back.warnings, told(back)) == ([], told(foretold))
    assert ("app", "restored", "2", "1") in told(back)
    assert ("old", "restored", None, "1") in told(back)
    assert depot.installed() == before | {"lib": "1", "app": "1"}
    depot.rollback()
    assert (depot.installed(), depot.files()) == (before, files)
    assert list(depot.host.states.transactions.iterdir()) == []


def test_what_is_installed_already_is_not_touched(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"))
    (depot.system / "opt/lib/version").write_text("changed by hand")
    depot.pack(depot.make("lib"))
    result = depot.extract()
    assert (told(result), result.actions) == ([("lib", "unchanged", "1", "1")], {"unchanged": 1})
    assert depot.files()["opt/lib/version"] == "changed by hand"
    assert depot.extract(force=True).changed is False


@pytest.mark.parametrize("depot", ["rpm", "apt", "dnf"], indirect=True)
def test_a_missing_dependency_is_found_before_anything_happens(depot: PackageDepot) -> None:
    depot.pack(depot.make("lib"), depot.make("needy", depends="nothing-there"))
    for check in (True, False):
        with pytest.raises(InstallError, match=r"do not fit together.*nothing-there"):
            depot.extract(check=check)
    assert depot.installed() == {}
    depot.pack(depot.make("lib"), depot.make("needy", depends="nothing-there"), nodeps=True)
    depot.extract()
    assert depot.installed().keys() == {"lib", "needy"}


@pytest.mark.parametrize("depot", ["rpm"], indirect=True)
def test_a_database_that_cannot_be_copied_is_told(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"))
    depot.pack(depot.make("lib", "2"))
    database = next(path.parent for path in depot.system.rglob("rpmdb.sqlite"))
    os.mkfifo(database / "odd")
    with pytest.raises(InstallError, match=r"cannot be copied: .*named pipe") as caught:
        depot.extract()
    assert "temporary directory" in str(caught.value.hint)
    (database / "odd").unlink()
    (database / "odd").symlink_to("what went away meanwhile")
    with pytest.raises(InstallError, match="changes all the time"):
        depot.extract()
    (database / "odd").unlink()
    depot.extract()
    assert depot.installed() == {"lib": "2"}


@pytest.mark.parametrize("depot", ["rpm", "apt", "dnf"], indirect=True)
def test_what_others_depend_on_is_not_taken_away(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"), depot.make("app", depends="lib = 1"))
    depot.pack(erase=["lib"])
    with pytest.raises(InstallError, match="app"):
        depot.extract()
    depot.pack(depot.make("lib", "2"))
    with pytest.raises(InstallError, match="app"):
        depot.extract()
    assert depot.installed() == {"lib": "1", "app": "1"}


@pytest.mark.parametrize("depot", ["rpm", "apt", "dnf"], indirect=True)
def test_a_package_takes_the_place_of_one_it_conflicts_with(depot: PackageDepot) -> None:
    depot.have(depot.make("old"))
    depot.pack(depot.make("new", conflicts="old", files={"opt/old/version": "new\n"}), erase=["old"])
    depot.extract()
    assert depot.installed() == {"new": "1"}
    assert depot.files() == {"opt/old/version": "new\n"}
    depot.rollback()
    assert (depot.installed(), depot.files()) == ({"old": "1"}, {"opt/old/version": "old 1\n"})


def test_a_newer_version_stays_unless_a_downgrade_is_asked_for(depot: PackageDepot) -> None:
    depot.have(depot.make("lib", "2"))
    depot.pack(depot.make("lib"))
    result = depot.extract()
    assert told(result) == [("lib", "newer", "2", "2")]
    assert "newer than" in result.warnings[0]
    (problem,) = verify_installed(depot.host, DISTRIBUTOR, NAME)
    assert (problem.path, problem.what) == ("lib", "version")
    depot.pack(depot.make("lib"), downgrade=True)
    assert told(depot.extract()) == [("lib", "downgraded", "2", "1")]
    assert depot.installed() == {"lib": "1"}
    depot.rollback()
    assert depot.installed() == {"lib": "2"}


def test_freshen_upgrades_only_what_is_there(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"))
    depot.pack(depot.make("lib", "2"), depot.make("app"), operation="freshen")
    assert told(depot.extract()) == [("app", "not installed", None, None), ("lib", "upgraded", "1", "2")]
    assert depot.installed() == {"lib": "2"}


def test_verify_tells_what_is_gone_and_what_is_of_another_version_and_repairs_it(depot: PackageDepot) -> None:
    depot.pack(depot.make("lib", "2"), depot.make("app"), depot.make("mine"), erase=["old"], downgrade=True)
    depot.extract()
    depot.remove("app")
    depot.have(depot.make("old"), depot.make("mine", "3"))
    depot.remove("lib")
    depot.have(depot.make("lib", "1"))
    found = {problem.path: (problem.what, problem.before, problem.after)
             for problem in verify_installed(depot.host, DISTRIBUTOR, NAME)}  # fmt: skip
    end = "-1" if depot.kind == "rpm" else ""
    assert found == {
        "app": ("missing", None, f"1{end}"), "lib": ("version", f"1{end}", f"2{end}"),
        "mine": ("version", f"3{end}", f"1{end}"), "old": ("extra", f"1{end}", None),
    }  # fmt: skip
    repair(depot.host, DISTRIBUTOR, NAME)
    assert depot.installed() == {"lib": "2", "app": "1", "mine": "1"}
    assert verify_installed(depot.host, DISTRIBUTOR, NAME) == []


def test_what_is_replaced_is_rebuilt_where_there_is_no_original(depot: PackageDepot) -> None:
    files = {"opt/lib/a": "one\n", "opt/lib/b": "=opt/lib/a", "opt/lib/l": "->a", "opt/lib/gone": "x", "opt/lib/c": "c"}
    depot.have(depot.make("lib", "1", files=files, tags="Provides: thing"))
    (depot.system / "opt/lib/c").write_text("changed, and longer")
    (depot.system / "opt/lib/gone").unlink()
    before = depot.files()
    depot.pack(depot.make("lib", "2"))
    depot.extract()
    assert depot.files() == {"opt/lib/version": "lib 2\n"}
    assert depot.rollback().warnings == []
    assert (depot.installed(), depot.files()) == ({"lib": "1"}, before)
    assert (depot.system / "opt/lib/l").readlink() == Path("a")
    assert (depot.system / "opt/lib/a").stat().st_ino == (depot.system / "opt/lib/b").stat().st_ino


def test_packages_that_others_changed_meanwhile_are_not_touched(depot: PackageDepot) -> None:
    depot.pack(depot.make("lib", "2"))

    def meanwhile(phase: str, _number: int) -> None:
        if phase == "capture":
            depot.have(depot.make("lib", "3"))

    depot.host.on_act = meanwhile
    with pytest.raises(TedError, match="changed since they were looked at"):
        depot.extract()
    assert depot.installed() == {"lib": "3"}


# --- one kind only -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depot", ["rpm", "dpkg"], indirect=True)
def test_the_order_listed_is_the_order_of_installation(depot: PackageDepot) -> None:
    depot.with_a_shell()
    names = ["zeta", "alpha", "mid"]
    packages = []
    for name in names:
        line = f"echo {name} >> /order"
        scripts: Any = f"%pre\n{line}\n" if depot.kind == "rpm" else {"preinst": line}
        packages.append(depot.make(name, scripts=scripts))
    depot.pack(*packages, order="listed")
    depot.extract()
    assert (depot.system / "order").read_text().split() == names


@pytest.mark.parametrize("depot", ["rpm"], indirect=True)
def test_rpm_installs_beside_other_versions_and_takes_only_that_back(depot: PackageDepot) -> None:
    depot.have(depot.make("kernel", "1", files={"opt/kernel-1": "1"}))
    depot.pack(depot.make("kernel", "2", files={"opt/kernel-2": "2"}), operation="install")
    assert told(depot.extract()) == [("kernel", "installed", None, "2")]
    assert depot.installed() == {"kernel": "1+2"}
    depot.pack(depot.make("kernel", "3", files={"opt/kernel-3": "3"}))
    assert told(depot.extract())[0][:2] == ("kernel", "upgraded")
    assert depot.installed() == {"kernel": "3"}
    depot.rollback()
    assert depot.installed() == {"kernel": "1+2"}
    depot.rollback()
    assert (depot.installed(), depot.files()) == ({"kernel": "1"}, {"opt/kernel-1": "1"})


@pytest.mark.parametrize("depot", ["rpm"], indirect=True)
def test_an_obsoleted_package_goes_and_comes_back(depot: PackageDepot) -> None:
    depot.have(depot.make("old-name"))
    depot.pack(depot.make("new-name", "2", tags="Obsoletes: old-name < 2"))
    foretold = depot.extract(check=True)
    assert told(depot.extract()) == told(foretold) == [
        ("new-name", "installed", None, "2"), ("old-name", "erased", "1", None)
    ]  # fmt: skip
    assert depot.installed() == {"new-name": "2"}
    depot.rollback()
    assert depot.installed() == {"old-name": "1"}


@pytest.mark.parametrize("depot", ["rpm"], indirect=True)
@pytest.mark.parametrize("compress", ["w2.xzdio", "w3.zstdio", "w2.bzdio"])
def test_packages_of_every_compression_are_rebuilt(depot: PackageDepot, compress: str) -> None:
    depot.have(depot.make("1st", compress=compress, version="1:1"))
    before = depot.files()
    depot.pack(erase=["1st"])
    depot.extract()
    kept = next(depot.host.states.transactions.rglob("old/*.rpm"))
    assert rpm_file.read(str(kept)).package == Package("1st", "noarch", "1:1-1")
    depot.rollback()
    assert (depot.installed(), depot.files()) == ({"1st": "1"}, before)


@pytest.mark.parametrize("depot", ["apt"], indirect=True)
def test_configuration_that_somebody_changed_stays_and_a_new_package_leaves_no_trace(depot: PackageDepot) -> None:
    config = {"etc/lib.conf": "default\n", "opt/lib/version": "1\n"}
    depot.have(depot.make("lib", files=config, config=["etc/lib.conf"]))
    (depot.system / "etc/lib.conf").write_text("changed\n")
    before = depot.installed()
    new = {"etc/lib.conf": "new default\n", "opt/lib/version": "2\n"}
    more = depot.make("more", files={"etc/more.conf": "x\n"}, config=["etc/more.conf"])
    depot.pack(depot.make("lib", "2", files=new, config=["etc/lib.conf"]), more)
    depot.extract()
    assert (depot.system / "etc/lib.conf").read_text() == "changed\n"
    depot.rollback()
    assert (depot.system / "etc/lib.conf").read_text() == "changed\n"
    assert depot.installed() == before
    assert not (depot.system / "etc/more.conf").exists()


@pytest.mark.parametrize("depot", ["dpkg"], indirect=True)
def test_dpkg_alone_undoes_what_turns_out_not_to_fit(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"))
    before, files = depot.installed(), depot.files()
    depot.pack(depot.make("lib", "2"), depot.make("needy", depends="nothing-there"))
    with pytest.raises(TedError, match="nothing-there"):
        depot.extract()
    assert (depot.installed(), depot.files()) == (before, files)


@pytest.mark.parametrize("depot", ["dpkg"], indirect=True)
def test_what_is_kept_goes_with_the_undo_log(depot: PackageDepot) -> None:
    for version in ("1", "2", "3"):
        depot.pack(depot.make("lib", version), settings={"max_revisions": 2})
        depot.extract()
    kept = sorted(path.name for path in depot.host.states.transactions.rglob("kept/*/*"))
    assert kept == ["0.deb", "0.deb"], "the originals of two revisions, and no package that came"


@pytest.mark.parametrize("depot", ["rpm"], indirect=True)
def test_the_undo_follows_a_working_directory_that_moves(depot: PackageDepot, tmp_path: Path) -> None:
    depot.have(depot.make("lib"))
    depot.pack(depot.make("lib", "2"))
    depot.extract()
    (tmp_path / "moved").mkdir()
    depot.working.path.rename(tmp_path / "moved" / "var")
    moved = PackageDepot.__new__(PackageDepot)
    moved.__dict__.update(depot.__dict__)
    Depot.__init__(moved, tmp_path / "moved")
    moved.signed = depot.signed
    assert moved.rollback().warnings == []
    assert moved.installed() == {"lib": "1"}


@pytest.mark.parametrize("depot", ["dpkg", "apt"], indirect=True)
def test_a_package_that_was_there_in_part_is_whole_after_a_rollback(depot: PackageDepot) -> None:
    depot.have(depot.make("lib"))
    status = depot.system / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("install ok installed", "install ok half-configured"))
    assert depot.installed() == {"lib": "1 iF"}
    depot.pack(depot.make("lib", "2"))
    depot.extract()
    assert depot.installed() == {"lib": "2"}
    depot.rollback()
    assert depot.installed() == {"lib": "1"}


@pytest.mark.parametrize("depot", ["dnf", "rpm"], indirect=True)
def test_what_dnf_would_put_beside_the_former_version_replaces_it(depot: PackageDepot) -> None:
    depot.have(depot.make("kernel"))
    depot.pack(depot.make("kernel", "2"))
    depot.extract()
    assert depot.installed() == {"kernel": "2"}
