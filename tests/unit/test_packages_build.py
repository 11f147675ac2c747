"""The Distributor's side: package files, their order, repositories with real metadata, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_servers import Vsftpd
from hostile_ftp import HostileFtp
from install_depot import DISTRIBUTOR, NAME
from package_depot import PackageDepot, Signer, Workshop, make_repository, run
from web_servers import PASSWORD, USER, Nginx, nginx

from ted import plugins
from ted.content.revision import Revision
from ted.errors import BuildError, FormatError, OptionsError, TedError
from ted_plugins.packages import deb_file, programs, rpm_file
from ted_plugins.packages.model import Package
from ted_plugins.packages.versions import compare_deb, compare_rpm


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    signer = Signer(tmp_path_factory.mktemp("k"), "repo")
    yield signer
    signer.close()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "workshop")


@pytest.fixture(params=["rpm", "dpkg"])
def depot(tmp_path: Path, request: pytest.FixtureRequest, workshop: Workshop) -> PackageDepot:
    return PackageDepot(tmp_path, request.param, workshop)


def index(depot: PackageDepot, stamp: str) -> list[tuple[str, str]]:
    """Return what a revision lists."""
    record, _ = depot.host.record(DISTRIBUTOR, NAME, stamp)
    with Revision(depot.working.distribution(DISTRIBUTOR, NAME), record).open() as reader:
        entry = reader.find(b"data/index.json")
        assert entry is not None
        rows = json.loads(b"".join(chunk for chunk in reader.chunks(entry) if isinstance(chunk, bytes)))["packages"]
    return [(row["name"], row["version"].removesuffix("-1")) for row in rows]


def test_the_order_of_the_inventory_is_kept_and_the_distributor_needs_no_package_manager(
    depot: PackageDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [depot.make(name) for name in ("zeta", "alpha", "mid")]
    monkeypatch.setattr(programs, "_PATH", "/nowhere")
    assert index(depot, depot.pack(*packages)) == [("zeta", "1"), ("alpha", "1"), ("mid", "1")]
    pattern = packages[0].parent / f"*.{depot.kind}"
    assert index(depot, depot.pack(pattern)) == [("alpha", "1"), ("mid", "1"), ("zeta", "1")]
    result = depot.extract()  # and a node without one passes it on
    assert result.state == "skipped"
    assert "not installed" in str(result.reason)


def test_the_same_packages_make_the_same_revision(depot: PackageDepot) -> None:
    package = depot.make("lib")
    assert depot.pack(package) == depot.pack(package)


@pytest.mark.parametrize(
    ("more", "told"),
    [({"erase": ["lib"]}, "in `erase` too"), ({}, "listed twice"), ({}, "in versions 1.* and 2")],
)
def test_contradictions_are_refused(depot: PackageDepot, more: dict[str, Any], told: str) -> None:
    package = depot.make("lib")
    packages = [package] if "erase" in more else [package, package]
    if "versions" in told:
        packages[1] = depot.make("lib", "2")
    with pytest.raises(BuildError, match=told):
        depot.pack(*packages, **more)


def test_what_is_no_package_is_refused(depot: PackageDepot, tmp_path: Path) -> None:
    other = tmp_path / f"other.{depot.kind}"
    other.write_bytes(b"!<arch>\n" + b"\xed\xab\xee\xdb" * 50)
    with pytest.raises(BuildError, match="is no"):
        depot.pack(other)
    with pytest.raises(BuildError, match="no package is there"):
        depot.pack(tmp_path / "nothing-*")


@pytest.mark.parametrize("kind", ["rpm", "deb"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"packages": ["relative.rpm"]}, {"packages": ["file:///etc/passwd"]}, {"packages": [{"name": "lib"}]},
        {"erase": ["--root=/"]}, {"erase": ["a b"]}, {"erase": ["a"], "root": "/../x"},
        {"packages": [{"path": "/a", "url": "http://h/a"}]}, {"packages": [{"url": "http://h/a", "sha256": "12"}]},
        {"erase": ["a"], "options": "--force"}, {"packages": [{"repository": "/r", "name": "a", "version": "1 --x"}]},
    ],
)  # fmt: skip
def test_options_that_could_reach_a_command_line_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        plugins.validate_options(kind, {"signature": "none", **options})


# --- repositories --------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(depot: PackageDepot, tmp_path: Path) -> Path:
    directory = tmp_path / "repository"
    directory.mkdir()
    for name, version in (("lib", "1.9"), ("lib", "1.10"), ("lib", "1.2"), ("app", "1")):
        shutil.move(depot.make(name, version), directory)
    return directory


def wanted(repository: Path | str, name: str, **more: Any) -> dict[str, Any]:
    return {"repository": str(repository), "name": name, **more}


def test_packages_come_from_a_repository_the_newest_or_the_one_named(depot: PackageDepot, repository: Path) -> None:
    make_repository(depot, repository)
    stamp = depot.pack(wanted(repository, "app"), wanted(repository, "lib"))
    assert index(depot, stamp) == [("app", "1"), ("lib", "1.10")]
    assert index(depot, depot.pack(wanted(repository, "lib", version="1.9"))) == [("lib", "1.9")]
    depot.extract()
    assert depot.installed() == {"lib": "1.9"}
    with pytest.raises(BuildError, match="no lib 3"):
        depot.pack(wanted(repository, "lib", version="3"))
    with pytest.raises(BuildError, match="no other"):
        depot.pack(wanted(repository, "other"))


def test_signature_and_digests_of_a_repository_hold_or_nothing_is_built(
    depot: PackageDepot, repository: Path, signer: Signer
) -> None:
    keys = {"repository_keys": [str(signer.key)]}
    make_repository(depot, repository)
    with pytest.raises(BuildError):
        depot.pack(wanted(repository, "lib"), **keys)
    make_repository(depot, repository, signer)
    depot.pack(wanted(repository, "lib"), **keys)
    package = next(repository.glob("lib*1.10*"))
    content = package.read_bytes()
    package.write_bytes(content + b"x")
    with pytest.raises(BuildError, match="not what the repository's index promises"):
        depot.pack(wanted(repository, "lib"), **keys)
    package.write_bytes(content)
    listing = next(repository.glob("repodata/*primary.xml*" if depot.kind == "rpm" else "Packages.xz"))
    listing.write_bytes(listing.read_bytes() + b"x")
    with pytest.raises(BuildError, match="not what its index promises"):
        depot.pack(wanted(repository, "lib"), **keys)
    head = repository / ("repodata/repomd.xml" if depot.kind == "rpm" else "InRelease")
    head.write_bytes(head.read_bytes().replace(b"amd64", b"arm64").replace(b"<revision>", b"<revision>1"))
    with pytest.raises(BuildError, match="signature does not hold"):
        depot.pack(wanted(repository, "lib"), **keys)


def test_of_several_architectures_one_must_be_named() -> None:
    from ted_plugins.packages.options import Source
    from ted_plugins.packages.repositories import Offered, choose

    offers = [Offered(Package("lib", arch, "1-1"), arch, "sha256:") for arch in ("x86_64", "i686")]
    with pytest.raises(BuildError, match="for i686, x86_64"):
        choose(offers, Source(repository="/r", name="lib"), compare_rpm, "r")
    assert choose(offers, Source(repository="/r", name="lib", arch="i686"), compare_rpm, "r") is offers[1]
    with pytest.raises(BuildError, match="no lib"):
        choose(offers, Source(repository="/r", name="lib", arch="s390x"), compare_rpm, "r")


def test_a_suite_of_an_apt_repository(tmp_path: Path, workshop: Workshop, signer: Signer) -> None:
    depot = PackageDepot(tmp_path, "dpkg", workshop)
    repository = tmp_path / "repository"
    (repository / "pool").mkdir(parents=True)
    shutil.move(depot.make("lib"), repository / "pool")
    make_repository(depot, repository, signer, suite=True)
    stamp = depot.pack(wanted(repository, "lib", suite="stable"), repository_keys=[str(signer.key)])
    assert index(depot, stamp) == [("lib", "1")]
    release = repository / "dists/stable/Release"
    release.write_text(release.read_text() + "Valid-Until: Sat, 01 Jan 2022 00:00:00 UTC\n")
    signer.gpg("--output", str(release.with_name("InRelease")), "--clear-sign", str(release))
    with pytest.raises(BuildError, match="was valid until"):
        depot.pack(wanted(repository, "lib", suite="stable"), repository_keys=[str(signer.key)])


def test_two_suites_of_one_apt_repository_on_a_web_server(tmp_path: Path, workshop: Workshop) -> None:
    depot = PackageDepot(tmp_path, "dpkg", workshop)
    repository = tmp_path / "repository"
    (repository / "pool").mkdir(parents=True)
    for name in ("lib", "app"):
        shutil.move(depot.make(name), repository / "pool")
    make_repository(depot, repository, suite=True)
    shutil.copytree(repository / "dists/stable", repository / "dists/updates")
    with nginx(tmp_path / "nginx", repository) as web:
        sources = [wanted(web.url, "lib", suite="stable"), wanted(web.url, "app", suite="updates")]
        stamp = depot.pack(*sources)
        assert index(depot, stamp) == [("lib", "1"), ("app", "1")]
        web.requests()
        assert depot.pack(*sources) == stamp
        assert not [request for request in web.requests() if request[1].endswith(".deb")]


@pytest.mark.parametrize("place", ["../secret.rpm", "/etc/passwd", "a/../../b", "http://elsewhere/x.rpm", "%2e%2e/x"])
def test_metadata_leads_nowhere_out_of_its_repository(tmp_path: Path, workshop: Workshop, place: str) -> None:
    from ted_plugins.packages.repositories import _inside

    with pytest.raises(BuildError, match="leads out"):
        _inside(place, "there")


def test_metadata_with_a_document_type_is_refused(tmp_path: Path, workshop: Workshop) -> None:
    depot = PackageDepot(tmp_path, "rpm", workshop)
    (tmp_path / "r/repodata").mkdir(parents=True)
    (tmp_path / "r/repodata/repomd.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><repomd>&a;</repomd>')
    with pytest.raises(BuildError, match="document type"):
        depot.pack(wanted(tmp_path / "r", "lib"))


# --- over the network ----------------------------------------------------------------------------------------------


@pytest.fixture
def web(repository: Path, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(tmp_path / "nginx", repository) as server:
        yield server


def test_a_package_at_an_address_is_fetched_once_and_must_be_what_was_promised(
    depot: PackageDepot, repository: Path, web: Nginx
) -> None:
    package = next(repository.glob("app*"))
    source = {"url": f"{web.url}/{package.name}", "sha256": hashlib.sha256(package.read_bytes()).hexdigest()}
    stamp = depot.pack(source)
    assert index(depot, stamp) == [("app", "1")]
    assert web.requests()
    assert depot.pack(source) == stamp
    assert web.requests() == [], "a promised digest needs no request"
    with pytest.raises(BuildError):
        depot.pack(source | {"sha256": "0" * 64})
    depot.extract()
    assert depot.installed() == {"app": "1"}


def test_a_package_of_an_ftp_server_is_fetched_once(depot: PackageDepot, tmp_path: Path) -> None:
    package = depot.make("app")
    (tmp_path / "files" / "pub").mkdir(parents=True)
    shutil.move(package, tmp_path / "files" / "pub")
    os.utime(tmp_path / "files" / "pub" / package.name, (1_600_000_000, 1_600_000_000))
    with Vsftpd(tmp_path / "ftp", tmp_path / "files") as server:
        address = f"ftp://127.0.0.1:{server.port}/pub/{package.name}"
        stamp = depot.pack(address)
        assert index(depot, stamp) == [("app", "1")]
        assert depot.pack(address) == stamp
        assert len(server.downloads()) == 1
        with pytest.raises(BuildError, match="no such file"):
            depot.pack(f"{address}.gone")
        with pytest.raises(TedError):
            depot.pack({"url": address, "sha256": "0" * 64})
    depot.extract()
    assert depot.installed() == {"app": "1"}


def test_a_repository_on_an_ftp_server(depot: PackageDepot, repository: Path, tmp_path: Path, signer: Signer) -> None:
    make_repository(depot, repository, signer)
    keys = {"repository_keys": [str(signer.key)]}
    with Vsftpd(tmp_path / "ftp", repository) as server:
        address = f"ftp://127.0.0.1:{server.port}/"
        sources = [wanted(address, name) for name in ("lib", "app")]
        stamp = depot.pack(*sources, **keys)
        assert index(depot, stamp) == [("lib", "1.10"), ("app", "1")]
        assert depot.pack(*sources, **keys) == stamp
        assert sum(each.endswith(f".{depot.kind}") for each in server.downloads()) == 2, "fetched once each"
        for package in repository.glob(f"app*.{depot.kind}"):
            package.write_bytes(package.read_bytes()[:-1] + b"x")
        shutil.rmtree(depot.working.state / "build")
        with pytest.raises(TedError):
            depot.pack(*sources, **keys)
        with pytest.raises(BuildError):
            depot.pack(wanted(f"{address}none", "app"))
    depot.extract()
    assert depot.installed() == {"lib": "1.10", "app": "1"}


@pytest.mark.parametrize("url", ["ftp://u:p@h/a.rpm", "ftp://h/", "ftp://h/d/", "ftp://h/a b", "ftp://h/a?x", "sftp://h/a",
                                 "ftp://h:99999/a", "ftp://[:/a"])  # fmt: skip
def test_addresses_that_are_none_of_one_file_are_refused(url: str) -> None:
    with pytest.raises(OptionsError) as refused:
        plugins.validate_options("rpm", {"packages": [url]})
    assert "u:p" not in str(refused.value)


@pytest.mark.parametrize("more", [{"token": "t"}, {"headers": {"A": "b"}}, {"verify_tls": False}, {"query": "q"}])
def test_options_of_the_web_are_refused_for_an_ftp_address(more: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="is for http and https only"):
        plugins.validate_options("rpm", {"packages": [{"url": "ftpes://h/a.rpm", **more}]})


def test_a_package_of_an_ftp_server_that_breaks_off_is_tried_again(depot: PackageDepot) -> None:
    content = depot.make("app").read_bytes()
    cuts = iter([100])
    with HostileFtp(content=lambda _: [content[: next(cuts, None)]], answers={"SIZE": f"213 {len(content)}"}) as server:
        stamp = depot.pack(f"{server.url}/app.bin")
        assert sum(each.startswith("USER") for each in server.commands) == 3, "to look, and for each try"
    assert index(depot, stamp) == [("app", "1")]


def test_fetching_keeps_to_a_rate(depot: PackageDepot, repository: Path, web: Nginx) -> None:
    random_text = hashlib.shake_256(b"ted").hexdigest(100_000)
    package = depot.make("large", files={"opt/large": random_text})
    shutil.copy(package, repository)
    began_s = time.monotonic()
    depot.pack({"url": f"{web.url}/{package.name}"}, fetch_rate="100kB")
    assert time.monotonic() - began_s > package.stat().st_size / 100_000 - 0.3


def test_a_repository_on_a_web_server_with_password_and_tls(
    depot: PackageDepot, repository: Path, web: Nginx, signer: Signer
) -> None:
    make_repository(depot, repository, signer)
    access = {"username": USER, "password": PASSWORD, "ca": web.ca}
    sources = [wanted(f"{web.tls_url}/private", name, **access) for name in ("lib", "app")]
    keys = {"repository_keys": [str(signer.key)]}
    stamp = depot.pack(*sources, **keys)
    assert index(depot, stamp) == [("lib", "1.10"), ("app", "1")]
    assert PASSWORD.encode() not in b"".join(path.read_bytes() for path in depot.working.path.rglob("*.json"))
    assert web.requests()
    assert depot.pack(*sources, **keys) == stamp
    asked = [request[1] for request in web.requests()]
    assert not any(place.endswith(f".{depot.kind}") for place in asked), "packages are not fetched again"
    for package in repository.glob(f"app*.{depot.kind}"):
        package.write_bytes(package.read_bytes()[:-1] + b"x")
    shutil.rmtree(depot.working.state / "build")
    with pytest.raises(TedError):
        depot.pack(*sources, **keys)
    shutil.rmtree(repository / "repodata", ignore_errors=True)
    for name in ("InRelease", "Release", "Packages", "Packages.xz"):
        (repository / name).unlink(missing_ok=True)
    with pytest.raises(BuildError):
        depot.pack(*sources, **keys)


# --- formats -------------------------------------------------------------------------------------------------------


def test_files_cut_anywhere_or_with_a_byte_changed_are_no_surprise(depot: PackageDepot, tmp_path: Path) -> None:
    package = depot.make("lib", compress="gzip") if depot.kind == "deb" else depot.make("lib")
    data = package.read_bytes()
    read = rpm_file.read if depot.kind == "rpm" else deb_file.read
    rng = random.Random(4)
    hurt = tmp_path / "hurt"
    for _ in range(300):
        changed = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)
        for _ in range(rng.randrange(4)):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        hurt.write_bytes(changed)
        try:
            found = read(str(hurt))
        except FormatError:
            continue
        assert isinstance(found.package, Package)


VERSIONS = [
    "1", "1.0", "1.0.1", "1.10", "1.9", "01.9", "1.a", "1.0a", "1.0~rc1", "1.0~rc2", "1.0^git1", "1.0^", "2", "2.0-1",
    "2.0-2", "1:0.1", "0:2.0-1", "1.0~", "a", "1_0", "1.0+b1", "5.5p10", "5.5p2", "10xyz", "xyz.4", "8.4.1-3.el8_5.2",
]  # fmt: skip


def test_versions_compare_as_rpm_compares_them() -> None:
    plain = [each for each in VERSIONS if ":" not in each and "-" not in each]
    pairs = [(one, other) for one in plain for other in plain]
    words = ", ".join(f"rpm.vercmp('{one}','{other}')" for one, other in pairs)
    said = run("rpm", "--eval", "%{lua: print(table.concat({" + words + "}, ' '))}").split()
    assert [compare_rpm(one, other) for one, other in pairs] == [int(each) for each in said]
    assert compare_rpm("1:0.1-1", "9-1") > 0 > compare_rpm("2.0-1", "0:2.0-2")
    assert compare_rpm("2.0", "2.0-7") == 0


def test_versions_compare_as_dpkg_compares_them() -> None:
    rng = random.Random(5)
    numbered = [each for each in VERSIONS if each[0].isdigit() and "^" not in each and "_" not in each]
    for one, other in rng.sample([(one, other) for one in numbered for other in numbered], 60):
        ours = compare_deb(one, other)
        relation = "lt" if ours < 0 else "gt" if ours > 0 else "eq"
        assert run("dpkg", "--compare-versions", one, relation, other) == "", (one, relation, other)


def test_metadata_without_end_end(tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from ted_plugins.packages import repositories

    monkeypatch.setattr(repositories, "_MAX_PIECE_BYTES", 1000)
    monkeypatch.setattr(deb_file, "_MAX_PARAGRAPH_BYTES", 1000)
    with pytest.raises(BuildError, match="a line of more than 1000 bytes"):
        list(repositories._lines(iter([b"x" * 600] * 2), "there"))
    with pytest.raises(FormatError, match="a paragraph of more than 1000 bytes"):
        list(deb_file.paragraphs(["a: b", *[" c"] * 500]))
    primary = repositories._Primary({"lib"}, "there")
    primary.feed(b"<metadata><package>")
    with pytest.raises(BuildError, match="a text of more than 1000 bytes"):
        primary.feed(b"<name>" + b"x" * 2000)
