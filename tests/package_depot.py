"""Real packages built by rpmbuild and dpkg-deb, and a node whose root has a real rpm database and dpkg directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from install_depot import DISTRIBUTOR, NAME, Depot

from ted import plugins
from ted.content.builder import RevisionBuilder

SHELL = "the-shell 1"
SHELL_FILES = ("/bin/sh", "/bin/dash", "/bin/rm", "/bin/kill")


class Workshop:
    """Builds packages into one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def rpm(
        self, name: str, version: str = "1", *, tags: str = "", scripts: str = "", files: dict[str, str] | None = None,
        config: Sequence[str] = (), compress: str = "w2.gzdio", arch: str = "noarch",
    ) -> Path:  # fmt: skip
        """Build ``name-version-1.noarch.rpm``; a version may carry its epoch as ``E:V``."""
        epoch, _, plain = version.rpartition(":")
        top = self.directory / f"{name}-{plain}"
        shutil.rmtree(top, ignore_errors=True)
        root = _content(top / "content", name, version, files)
        listed = "".join(f"{'%config(noreplace) ' if path in config else ''}/{path}\n" for path in _paths(root))
        spec = top / "it.spec"
        spec.write_text(
            f"Name: {name}\nVersion: {plain}\nRelease: 1\nSummary: s\nLicense: x\nBuildArch: {arch}\n"
            + (f"Epoch: {epoch}\n" if epoch else "") + f"{tags}\n%description\nd\n%install\n"
            f"mkdir -p %{{buildroot}}; cp -a {root}/. %{{buildroot}}/\n{scripts}\n%files\n{listed}"
        )  # fmt: skip
        run("rpmbuild", "-bb", "--quiet", "--nodeps", "--define", f"_topdir {top}", "--define", "_rpmdir %{_topdir}",
            "--define", "_rpmfilename out.rpm", "--define", f"_binary_payload {compress}",
            "--define", "__os_install_post %{nil}", str(spec))  # fmt: skip
        return Path(shutil.move(top / "out.rpm", self.directory / f"{name}-{plain}-1.{arch}.rpm"))

    def deb(
        self, name: str, version: str = "1", *, tags: str = "", scripts: dict[str, str] | None = None,
        files: dict[str, str] | None = None, config: Sequence[str] = (), compress: str = "gzip", arch: str = "all",
    ) -> Path:  # fmt: skip
        """Build ``name_version_all.deb``."""
        top = self.directory / f"{name}_{version.replace(':', '%3a')}"
        shutil.rmtree(top, ignore_errors=True)
        _content(top, name, version, files)
        (top / "DEBIAN").mkdir()
        lines = [f"Package: {name}", f"Version: {version}", f"Architecture: {arch}", "Maintainer: m <m@example.com>"]
        lines += [tags] if tags else []
        (top / "DEBIAN" / "control").write_text("\n".join([*lines, "Description: d\n"]))
        if config:
            (top / "DEBIAN" / "conffiles").write_text("".join(f"/{path}\n" for path in config))
        for script, text in (scripts or {}).items():
            (top / "DEBIAN" / script).write_text(f"#!/bin/sh\n{text}\n")
            (top / "DEBIAN" / script).chmod(0o755)
        target = self.directory / f"{top.name}_{arch}.deb"
        run("dpkg-deb", "--root-owner-group", f"-Z{compress}", "-b", str(top), str(target))
        return target


def _content(root: Path, name: str, version: str, files: dict[str, str] | None) -> Path:
    for path, text in (files or {f"opt/{name}/version": f"{name} {version}\n"}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            (root / path).symlink_to(text[2:])
        elif text.startswith("="):
            os.link(root / text[1:], root / path)
        else:
            (root / path).write_text(text)
    return root


def _paths(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())


def run(*words: str, check: bool = True, **more: Any) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


class Signer:
    """A person with a key."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home / name, name
        self.home.mkdir(mode=0o700)
        self.env = {**os.environ, "GNUPGHOME": str(self.home)}
        self.gpg("--quick-gen-key", f"{name}@example.com", "rsa2048", "sign", "never")
        self.key = self.home / "key.asc"
        self.gpg("--armor", "--output", str(self.key), "--export")

    def gpg(self, *words: str) -> None:
        quiet = ("--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", "")
        run("gpg", *quiet, *words, env=self.env)

    def sign(self, package: Path, directory: Path) -> Path:
        """Return a signed copy of a package."""
        directory.mkdir(exist_ok=True)
        copy = Path(shutil.copy(package, directory))
        if package.suffix == ".rpm":
            macros = (f"__gpg {shutil.which('gpg')}", f"_gpg_name {self.name}@example.com")
            defined = [word for macro in macros for word in ("--define", macro)]
            run("rpmsign", *defined, "--addsign", str(copy), env=self.env)
            return copy
        run("ar", "x", str(copy), cwd=directory)
        parts = ["debian-binary", *sorted(path.name for path in directory.glob("*.tar.*"))]
        (directory / "all").write_bytes(b"".join((directory / part).read_bytes() for part in parts))
        self.gpg("--output", str(directory / "_gpgorigin"), "--detach-sign", str(directory / "all"))
        run("ar", "r", str(copy), "_gpgorigin", cwd=directory)
        return copy

    def close(self) -> None:
        run("gpgconf", "--kill", "all", env=self.env)


class PackageDepot(Depot):
    """A node with a root of its own, for one way of installing: rpm, dnf, dpkg or apt."""

    def __init__(self, root: Path, through: str, workshop: Workshop) -> None:
        super().__init__(root)
        self.through = through
        self.kind = "rpm" if through in ("rpm", "dnf") else "deb"
        self.system = root / "system"
        self.system.mkdir(exist_ok=True)
        self.workshop = workshop

    def make(self, name: str, version: str = "1", **more: Any) -> Path:
        """Return a package of this kind: ``depends`` and ``conflicts`` as both write them."""
        tags = []
        for field in ("depends", "conflicts"):
            if what := more.pop(field, None):
                words = {"depends": "Requires", "conflicts": "Conflicts"}
                version_of = what.partition(" = ")
                bare = f"{version_of[0]} (= {version_of[2]})" if version_of[2] else what
                tags.append(f"{words[field]}: {what}" if self.kind == "rpm" else f"{field.title()}: {bare}")
        more["tags"] = "\n".join([*tags, *([more["tags"]] if more.get("tags") else [])])
        build = self.workshop.rpm if self.kind == "rpm" else self.workshop.deb
        return build(name, version, **more)

    def pack(self, *packages: Any, settings: dict[str, Any] | None = None, name: str = NAME, **options: Any) -> str:
        """Build a revision of a distribution of packages and return its stamp."""
        given: dict[str, Any] = {
            "packages": [each if isinstance(each, dict) else str(each) for each in packages],
            "root": str(self.system), "through": self.through, "signature": "none", **options,
        }  # fmt: skip
        model = plugins.validate_options(self.kind, given)
        with RevisionBuilder(
            self.working.distribution(DISTRIBUTOR, name), DISTRIBUTOR, name, self.kind, settings or {},
            model.model_dump(mode="json"), allow_empty=True,
        ) as builder:  # fmt: skip
            plugins.gather(self.kind, builder, model, self.working.state / "build")
            result = builder.finish()
        self.signed.add(hashlib.sha256(result.record_bytes).hexdigest())
        return result.record.revision

    def have(self, *packages: Path) -> None:
        """Install packages as somebody else would."""
        if self.kind == "rpm":
            run("rpm", "--root", str(self.system), "-U", "--oldpackage", "--nodeps", *map(str, packages))
            return
        for directory in ("info", "updates", "triggers"):
            (self.system / "var/lib/dpkg" / directory).mkdir(parents=True, exist_ok=True)
        for file in ("status", "available"):
            (self.system / "var/lib/dpkg" / file).touch()
        run("dpkg", f"--root={self.system}", "-i", *map(str, packages))

    def remove(self, name: str) -> None:
        if self.kind == "rpm":
            run("rpm", "--root", str(self.system), "-e", "--nodeps", name)
        else:
            run("dpkg", f"--root={self.system}", "--force-depends", "--purge", name)

    def installed(self) -> dict[str, str]:
        """Return name -> version, as the package manager itself says; a version in a bad state bears it."""
        if self.kind == "rpm":
            text = run("rpm", "--root", str(self.system), "-qa", "--qf", "%{NAME} %{VERSION}\n")
            rows = sorted(line.split(" ") for line in text.splitlines() if line != SHELL)
            rows = [row for row in rows if row[0] != "gpg-pubkey"]
            return {name: "+".join(row[1] for row in rows if row[0] == name) for name, _ in rows}
        if not (self.system / "var/lib/dpkg/status").is_file():
            return {}
        text = run("dpkg", f"--root={self.system}", "-l", check=False)
        rows = [line.split() for line in text.splitlines()[5:]]
        return {row[1]: row[2] if row[0] == "ii" else f"{row[2]} {row[0]}" for row in rows}

    def files(self) -> dict[str, str]:
        """Return the packages' own files: path -> content."""
        return {
            str(path.relative_to(self.system)): path.read_text()
            for path in sorted((self.system / "opt").rglob("*")) if path.is_file()
        } if (self.system / "opt").is_dir() else {}  # fmt: skip

    def with_a_shell(self) -> None:
        """Put a shell into the root, for scripts of packages."""
        for program in SHELL_FILES:
            words = run("ldd", program, check=False).split()
            for path in {program, *(word for word in words if word.startswith("/"))}:
                target = self.system / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    shutil.copy(os.path.realpath(path), target)
        if self.kind == "rpm":  # every package with scripts depends on it
            self.have(self.make("the-shell", tags="Provides: /bin/sh", files={"etc/shells": "/bin/sh\n"}))


def make_repository(depot: PackageDepot, directory: Path, signer: Signer | None = None, *, suite: bool = False) -> None:
    """Make the metadata of a repository with the real tools."""
    if depot.kind == "rpm":
        run("createrepo_c", "--quiet", str(directory))
        if signer is not None:
            signer.gpg("--armor", "--output", str(directory / "repodata/repomd.xml.asc"), "--detach-sign",
                       str(directory / "repodata/repomd.xml"))  # fmt: skip
        return
    top = directory / "dists/stable" if suite else directory
    below = "main/binary-amd64/" if suite else ""
    (top / below).mkdir(parents=True, exist_ok=True)
    packages = run("dpkg-scanpackages", "--multiversion", ".", cwd=directory)
    (top / f"{below}Packages").write_text(packages)
    run("xz", "-kf", str(top / f"{below}Packages"))
    digests = ""
    for name in (f"{below}Packages", f"{below}Packages.xz"):
        digest = run("sha256sum", str(top / name)).split()[0]
        digests += f" {digest} {(top / name).stat().st_size} {name}\n"
    (top / "Release").write_text(f"Origin: t\nArchitectures: amd64\nComponents: main\nSHA256:\n{digests}")
    if signer is not None:
        signer.gpg("--output", str(top / "InRelease"), "--clear-sign", str(top / "Release"))
