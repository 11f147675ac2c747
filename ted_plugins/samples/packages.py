"""Samples of the types rpm and deb: real packages, a real database in a root of its own."""

from __future__ import annotations

import base64
import functools
import http.server
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ted.testing import Bench, Sample, Variant
from ted.testing.sample import is_secret
from ted_plugins.packages.deb import Deb
from ted_plugins.packages.manager import Flags
from ted_plugins.packages.rpm import Rpm
from ted_plugins.sources.web import WebAccess

_KEY = b"\x99not a key that opens anything"
_AT_S = "1400000000"
_USER = "reader"
_SCRIPTS = """\
%post -p <lua>
io.open("/posted", "w"):close()
%postun -p <lua>
if tonumber(arg[2]) == 0 then os.remove("/posted") end
"""


@dataclass(frozen=True)
class Wanted:
    """A package to be built: everything that its content depends on."""

    kind: str
    name: str
    version: str = "1"
    files: tuple[tuple[str, str], ...] = ()
    needs: str = ""
    script: bool = False
    config: str = ""
    arch: str = ""


@functools.cache
def built(wanted: Wanted) -> bytes:
    """Return a package's bytes: built once in a process, the same in every one."""
    with tempfile.TemporaryDirectory(prefix="ted-sample-") as directory:
        top = Path(directory)
        for path, text in wanted.files or ((f"opt/{wanted.name}/version", f"{wanted.name} {wanted.version}\n"),):
            (top / "content" / path).parent.mkdir(parents=True, exist_ok=True)
            (top / "content" / path).write_text(text)
        for made in (top / "content").rglob("*"):
            made.chmod(0o755 if made.is_dir() else 0o644)
        return (_rpm if wanted.kind == "rpm" else _deb)(wanted, top)


def _rpm(wanted: Wanted, top: Path) -> bytes:
    listed = "".join(
        f"{'%doc ' if path.suffix == '.doc' else ''}/{path.relative_to(top / 'content')}\n"
        for path in sorted((top / "content").rglob("*")) if path.is_file()
    )  # fmt: skip
    script = _SCRIPTS if wanted.script else ""
    (top / "it.spec").write_text(
        f"Name: {wanted.name}\nVersion: {wanted.version}\nRelease: 1\nSummary: s\nLicense: x\n"
        f"BuildArch: {wanted.arch or 'noarch'}\n" + (f"Requires: {wanted.needs}\n" if wanted.needs else "")
        + f"%description\nd\n%install\ncp -a {top}/content/. %{{buildroot}}/\n{script}%files\n{listed}"
    )  # fmt: skip
    macros = {
        "_topdir": str(top), "_rpmdir": str(top), "_rpmfilename": "out.rpm", "__os_install_post": "%{nil}",
        "_buildhost": "localhost", "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1", "_binary_payload": "w2.gzdio",
    }  # fmt: skip
    defined = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
    _run("rpmbuild", "-bb", "--quiet", "--nodeps", *defined, str(top / "it.spec"))
    return (top / "out.rpm").read_bytes()


def _deb(wanted: Wanted, top: Path) -> bytes:
    control = top / "content" / "DEBIAN"
    control.mkdir()
    lines = [f"Package: {wanted.name}", f"Version: {wanted.version}", f"Architecture: {wanted.arch or 'all'}",
             "Maintainer: m <m@example.com>"]  # fmt: skip
    lines += [f"Depends: {wanted.needs}"] if wanted.needs else []
    (control / "control").write_text("\n".join([*lines, "Description: d\n"]))
    if wanted.config:
        (control / "conffiles").write_text(f"/{wanted.config}\n")
    _run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", str(top / "content"), str(top / "out.deb"))
    return (top / "out.deb").read_bytes()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": _AT_S, "TZ": "UTC"})


@dataclass
class _Shelf:
    """Where the packages of a sample lie, and the system they are installed into."""

    kind: str
    bench: Bench
    system: Path = field(init=False)

    def __post_init__(self) -> None:
        self.system = self.bench.target / "system"

    def put(self, directory: str, name: str, version: str = "1", **more: Any) -> Path:
        """Write a package to a directory of the sources."""
        path = self.bench.sources / directory / f"{name}-{version}{more.get('arch', '')}.{self.kind}"
        return Path(self.bench.write(path, built(Wanted(self.kind, name, version, **more))))

    def make_system(self) -> None:
        """Make a root with an empty database."""
        self.system.mkdir(parents=True)
        if self.kind == "rpm":
            _run("rpm", "--root", str(self.system), "--initdb")
            _run("rpm", "--root", str(self.system), "-qa")
        else:
            for name in ("info", "updates", "triggers"):
                (self.system / "var/lib/dpkg" / name).mkdir(parents=True)
            for name in ("status", "available"):
                (self.system / "var/lib/dpkg" / name).touch()

    def have(self, name: str, version: str = "1", **more: Any) -> Callable[[], None]:
        """Return what installs a package as somebody else would."""

        def install() -> None:
            package = self.bench.aside / f"{name}-{version}.{self.kind}"
            package.write_bytes(built(Wanted(self.kind, name, version, **more)))
            if self.kind == "rpm":
                _run("rpm", "--root", str(self.system), "-U", "--oldpackage", "--replacepkgs", "--nodeps", str(package))
            else:
                _run("dpkg", f"--root={self.system}", "-i", str(package))

        return install

    def outcome(self) -> Sequence[str]:
        """Return what is installed, as the package manager says, and what its files hold."""
        flags = Flags(root=str(self.system))
        packages = sorted(map(str, (Rpm(flags) if self.kind == "rpm" else Deb(flags)).installed()))
        files = [path for path in (self.system / "opt").rglob("*") if path.is_file()]
        files += [self.system / "posted"] if (self.system / "posted").exists() else []
        return [*packages, *sorted(f"{path}: {path.read_bytes()!r}" for path in files)]


def rpm_sample(bench: Bench) -> Sample:
    """Return a small distribution of RPM packages, one of a repository."""
    return _sample(bench, "rpm", [
        Variant("database", "/var/lib/other-db"),
        Variant("scripts", value=False),
        Variant("docs", value=False),
    ])  # fmt: skip


def deb_sample(bench: Bench) -> Sample:
    """Return a small distribution of Debian packages, one of a repository."""
    return _sample(bench, "deb", [
        Variant("purge", value=True, given=_Shelf("deb", bench).have(
            "legacy", files=(("opt/legacy.conf", "x\n"),), config="opt/legacy.conf")),
        Variant("packages.1.suite", "stable"),
        Variant("packages.1.component", "contrib"),
    ])  # fmt: skip


def _sample(bench: Bench, kind: str, more: Sequence[Variant]) -> Sample:
    shelf = _Shelf(kind, bench)
    shelf.make_system()
    app = shelf.put("here", "app", script=True, files=(("opt/app/version", "1\n"), ("opt/app/readme.doc", "read\n")))
    other = shelf.put("other", "other")
    for version in ("1", "2"):
        shelf.put("repository", "lib", version)
    shelf.put("repository", "tool", arch="x86_64" if kind == "rpm" else "amd64")
    _index(kind, bench.sources / "repository")
    key = bench.write(bench.sources / "key.gpg", _KEY)
    first = {"path": str(app)}
    served = bench.enter(_serving(bench.sources, bench.secret))
    second = {"repository": f"{served}/repository/", "name": "lib", "version": "1", "username": _USER,
              "password": bench.secret}  # fmt: skip
    options = {
        "packages": [first, second],
        "erase": ["legacy"], "root": str(shelf.system), "signature": "none",
        "through": "rpm" if kind == "rpm" else "dpkg",
    }  # fmt: skip

    def change() -> dict[str, Any]:
        newer = shelf.put("here", "app", "2", files=(("opt/app/version", "2\n"), ("opt/app/new", "new\n")))
        return {**options, "packages": [{**first, "path": str(newer)}, {**second, "version": "2"}]}

    def needy() -> None:
        bench.write(app, built(Wanted(kind, "app", needs="nothing-there")))

    of_the_http_type = {
        f"packages.{name}": "an option of the http type, which shows that it has an effect"
        for name, info in WebAccess.model_fields.items() if not is_secret(info)
    }  # fmt: skip
    return Sample(
        options, change, [shelf.system], outcome=shelf.outcome,
        variants=[
            Variant("packages.0.path", str(other)),
            Variant("packages.0.url", "https://192.0.2.1/app.rpm"),
            Variant("packages.0.sha256", "0" * 64),
            Variant("packages.1.repository", str(bench.sources / "nothing")),
            Variant("packages.1.password", "wrong"),
            *(Variant(f"packages.1.{name}", "two\nlines") for name in ("query", "proxy_password", "key_password")),
            Variant("packages.1.token", "not with a username"),
            Variant("packages.1.headers", {"X-Key": "two\nlines"}),
            Variant("packages.1.name", "tool"),
            Variant("packages.1.version", "2"),
            Variant("erase", ["legacy", "foreign"], given=shelf.have("foreign")),
            Variant("operation", "freshen"),
            Variant("operation", "install", given=shelf.have("app", "0", files=(("opt/app/version", "0\n"),))),
            Variant("downgrade", value=True, given=shelf.have("app", "9")),
            Variant("nodeps", value=True, sources=needy),
            Variant("replace_files", value=True, given=shelf.have("squatter", files=(("opt/app/version", "?\n"),))),
            Variant("keys", [str(key)]),
            Variant("repository_keys", [str(key)]),
            Variant("root", str(bench.target / "another")),
            *more,
        ],
        inert={
            "fetch_rate": "shows only in time",
            "packages.arch": "shows only where a repository has a package for several architectures",
            "order": "shows only in the order of scripts, which tests of the type look at",
            "through": "says which program does it; what comes of it is the same",
            "timeout_s": "shows only in time",
            "verify": "shows only where a package is removed by hand, not a file",
            **of_the_http_type,
        },
        reads="the package manager tests the packages themselves before they are installed",
        # What was there is what the package manager says and what its packages' files hold: directories and databases
        # are the package manager's own.
        volatile=[str(shelf.system), f"{shelf.system}/*"],
    )  # fmt: skip


@contextmanager
def _serving(directory: Path, secret: str) -> Iterator[str]:
    """Yield the address of a web server of what is in a directory, for whoever has the password."""
    wanted = "Basic " + base64.b64encode(f"{_USER}:{secret}".encode()).decode()
    handler = functools.partial(_Handler, wanted, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, wanted: str, *arguments: Any, **more: Any) -> None:
        self._wanted = wanted
        super().__init__(*arguments, **more)

    def send_head(self) -> Any:
        """Send what is there to those who may have it."""
        if self.headers["Authorization"] != self._wanted:
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


def _index(kind: str, directory: Path) -> None:
    """Make the metadata of a repository."""
    if kind == "rpm":
        _run("createrepo_c", "--quiet", "--set-timestamp-to-revision", "--revision", _AT_S, str(directory))
        return
    packages = subprocess.run(
        ["dpkg-scanpackages", "--multiversion", "."], cwd=directory, check=True, capture_output=True
    ).stdout
    (directory / "Packages").write_bytes(packages)
