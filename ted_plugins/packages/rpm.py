"""rpm, and dnf where it is there.

Rules:
 * What an act leads to is found out by doing it in a copy of the rpm database (``--justdb``): dependencies, conflicts,
   obsoleted packages and the order of erasing are decided by rpm itself.
 * Then rpm's own test runs against the real database: file conflicts and room on the disk.
 * dnf does everything in one transaction, with no repository and no plugin. It cannot keep an order, install beside
   another version, replace files of others or leave dependencies out: that is rpm's, in at most two transactions.
 * Signatures are checked by rpmkeys with a keyring of the distribution's keys; without keys, with the system's own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ted.errors import FormatError, InstallError, TedError, TrustError
from ted_plugins.packages import programs, rpm_file
from ted_plugins.packages.manager import Act, Flags, Foretold
from ted_plugins.packages.model import Package
from ted_plugins.packages.programs import run
from ted_plugins.packages.versions import compare_rpm

_FORMAT = r"%{NAME}\t%{EPOCHNUM}\t%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SHA256HEADER}\t%{SHA1HEADER}\n"
_CACHES = ("var/cache/dnf", "var/cache/yum", "var/cache/libdnf5", "var/cache/zypp/packages")
_COPIES = 3


def unavailable() -> str | None:
    """Say why packages cannot be installed here; ``None`` when they can."""
    missing = [program for program in ("rpm", "rpmkeys", "rpmdb") if not programs.found(program)]
    return f"{', '.join(missing)} not installed" if missing else None


@dataclass(frozen=True)
class Rpm:
    """The packages below one root."""

    flags: Flags
    suffix: str = "rpm"
    read = staticmethod(rpm_file.read)
    compare = staticmethod(compare_rpm)

    # -- what is there

    def installed(self) -> dict[Package, str]:
        """Return every package that is installed, and the digest of its header."""
        return _listed(run(["rpm", *self._where(), "-qa", "--qf", _FORMAT]))

    def cached(self, package: Package) -> list[str]:
        """Return package files of that name in the caches of dnf and its kin."""
        version = package.version.partition(":")[2] or package.version
        name = f"{package.name}-{version}.{package.arch}.rpm"
        roots = dict.fromkeys((self.flags.root, "/"))
        return [str(path) for root in roots for cache in _CACHES for path in Path(root, cache).rglob(name)]

    def rebuild(self, package: Package, target: IO[bytes]) -> None:
        """Write an installed package as a file: its header from the database, its content from the disk."""
        try:
            header = self._header(package)
            with tempfile.TemporaryFile() as scratch:
                rpm_file.rebuild(header, self.flags.root, target, scratch)
        except (FormatError, OSError) as error:
            told = error.message if isinstance(error, FormatError) else str(error)
            raise InstallError(f"{package}: cannot be rebuilt from what is installed: {told}") from error

    def _header(self, package: Package) -> rpm_file.Header:
        words = ["rpmdb", *self._where(), "--exportdb"]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=programs.environment()
        ) as process:
            assert process.stdout is not None
            try:
                for header in rpm_file.headers(process.stdout):
                    if header.package() == package:
                        return header
            finally:
                process.kill()
        raise InstallError(f"{package}: is not in the rpm database")

    def leaves_traces(self, package: Package) -> bool:
        """Return False: rpm knows nothing of what is not installed."""
        del package
        return False

    # -- before anything happens

    def check_signatures(self, files: Sequence[tuple[Package, str]], keys: Sequence[bytes]) -> None:
        """Check every package with rpmkeys."""
        with tempfile.TemporaryDirectory(prefix="ted-keys-") as directory:
            where = ["--dbpath", directory] if keys else self._where()
            for number, key in enumerate(keys):
                place = Path(directory, f"{number}.asc")
                place.write_bytes(key)
                try:
                    run(["rpmkeys", "--dbpath", directory, "--import", str(place)])
                except TedError as error:
                    raise TrustError(f"a key of the distribution cannot be used: {error.message}") from error
            for package, path in files:
                if not self.read(path).signed:
                    raise TrustError(f"{package}: is not signed", hint=_SIGNATURE_HINT)
                try:
                    run(["rpmkeys", *where, "--define", "_pkgverify_level all", "--checksig", path])
                except TedError as error:
                    told = error.message.replace(path, str(package))
                    raise TrustError(f"{package}: its signature does not hold: {told}", hint=_SIGNATURE_HINT
                                            ) from error  # fmt: skip

    def foretell(self, act: Act) -> Foretold:
        """Do it in a copy of the database: first installing, or first erasing where that does not go."""
        with self._copied() as copy:
            try:
                self._in_two(["--dbpath", copy, "--justdb"], act, erase_first=False)
                steps: tuple[tuple[str, tuple[int, ...]], ...] = (("install", ()), ("erase", ()))
            except InstallError:
                if not act.install or not act.erase:
                    raise
                with self._copied() as other:
                    self._in_two(["--dbpath", other, "--justdb"], act, erase_first=True)
                    after = _listed(run(["rpm", "--dbpath", other, "-qa", "--qf", _FORMAT]))
                    return Foretold(frozenset(after), Act(act.install, act.erase, (("erase", ()), ("install", ()))))
            after = _listed(run(["rpm", "--dbpath", copy, "-qa", "--qf", _FORMAT]))
        return Foretold(frozenset(after), Act(act.install, act.erase, steps))

    def test(self, act: Act) -> None:
        """Run ``rpm --test``; dependencies were tested with everything else of the act, in ``foretell``."""
        with _told("the test of the installation failed"):
            if act.install:
                # files of what is erased first are in nobody's way then
                files = ["--replacefiles"] if act.erase and act.steps[0][0] == "erase" else []
                run(["rpm", *self._where(), *self._install(), "--test", "--nodeps", *files, *_paths(act)])
            if act.erase:
                run(["rpm", *self._where(), "--erase", "--test", "--nodeps", *_names(act.erase)])

    def _in_two(self, where: list[str], act: Act, *, erase_first: bool) -> None:
        """Install and erase in the copy of the database, erased packages' dependents being tested in the end."""
        deps = ["--nodeps"] if self.flags.nodeps else []
        with _told("the packages do not fit together"):
            if erase_first:
                run(["rpm", *where, "--erase", "--nodeps", *_names(act.erase)])
            if act.install:
                # room on the disk is a matter of the real root: ``test`` looks at that
                run(["rpm", *where, *self._install(), "--ignoresize", *deps, *_paths(act)])
            if act.erase and not erase_first:
                there = _listed(run(["rpm", *where[:2], "-qa", "--qf", _FORMAT]))
                if left := [package for package in act.erase if package in there]:
                    run(["rpm", *where, "--erase", *deps, *_names(left)])

    @contextlib.contextmanager
    def _copied(self) -> Iterator[str]:
        """Yield a copy of the rpm database that says the same as the database itself."""
        database = self.flags.database or run(["rpm", "--eval", "%{_dbpath}"]).strip()
        source = Path(self.flags.root) / database.lstrip("/")
        with tempfile.TemporaryDirectory(prefix="ted-rpmdb-") as directory:
            for number in range(_COPIES):
                copy = f"{directory}/{number}"
                if not source.is_dir():
                    Path(copy).mkdir()
                elif not _copy(source, copy):
                    continue
                if _listed(run(["rpm", "--dbpath", copy, "-qa", "--qf", _FORMAT])) == self.installed():
                    yield copy
                    return
        raise InstallError("the rpm database changes all the time", hint="wait for whoever installs packages now")

    # -- doing it

    def perform(self, act: Act, *, hold: int) -> None:
        """Do it through dnf, or through rpm in the order that was found to go."""
        if self._by_dnf():
            self._dnf(act, hold)
            return
        for word, _ in act.steps:
            deps = ["--nodeps"] if self.flags.nodeps or word == "erase" else []
            if word == "install" and act.install:
                nodeps = ["--nodeps"] if self.flags.nodeps or act.erase else []
                run(["rpm", *self._where(), *self._install(), *nodeps, *_paths(act)], pass_fds=[hold])
            elif word == "erase" and act.erase and (left := [each for each in act.erase if each in self.installed()]):
                run(["rpm", *self._where(), "--erase", *self._quiet(), *deps, *_names(left)], pass_fds=[hold])

    def restore(self, act: Act, *, again: Sequence[Package], traceless: Sequence[Package], hold: int) -> None:
        """Go back; where scriptlets stand in the way, without them."""
        del traceless
        try:
            self._restore(act, hold, self._quiet())
        except TedError:
            left = self._left(act, again)
            self._restore(left, hold, ["--noscripts", "--notriggers"])

    def _left(self, act: Act, again: Sequence[Package]) -> Act:
        there = self.installed()
        return Act(
            tuple(each for each in act.install if each[0] not in there or each[0] in again),
            tuple(each for each in act.erase if each in there),
        )

    def _restore(self, act: Act, hold: int, how: list[str]) -> None:
        where = ["rpm", *self._where()]
        force = ["--oldpackage", "--replacepkgs", "--replacefiles", "--nosignature", "--nodeps", *how]
        several = {one.name for one, _ in act.install for other, _ in act.install
                   if (one.name, one.arch) == (other.name, other.arch) and one != other}  # fmt: skip
        for word, paths in (
            ("--upgrade", [path for package, path in act.install if package.name not in several]),
            ("--install", [path for package, path in act.install if package.name in several]),
        ):
            if paths:
                run([*where, word, *force, *paths], pass_fds=[hold])
        if left := [package for package in act.erase if package in self.installed()]:
            run([*where, "--erase", "--nodeps", *how, *_names(left)], pass_fds=[hold])

    def _dnf(self, act: Act, hold: int) -> None:
        """Let dnf do all of it in one transaction."""
        # dnf takes local files only before anything else
        lines = [shlex.join(["install", *_paths(act)])] if act.install else []
        lines += [shlex.join(["remove", *_names(act.erase)])] if act.erase else []
        with tempfile.TemporaryDirectory(prefix="ted-dnf-") as directory:
            for name in ("repos", "cache", "vars"):
                Path(directory, name).mkdir()
            script = Path(directory, "script")
            script.write_text("\n".join([*lines, "run"]) + "\n")
            settings = {
                "reposdir": f"{directory}/repos", "varsdir": f"{directory}/vars", "cachedir": f"{directory}/cache",
                "localpkg_gpgcheck": "0", "strict": "1", "best": "1", "install_weak_deps": "0",
                "clean_requirements_on_remove": "0", "keepcache": "0", "installonlypkgs": "",
            }  # fmt: skip
            if flags := [*["noscripts"] * (not self.flags.scripts), *["nodocs"] * (not self.flags.docs)]:
                settings["tsflags"] = ",".join(flags)
            words = ["dnf", "-y", "-q", "-C", "--noplugins"]
            if self.flags.root != "/":
                settings["logdir"] = f"{directory}/log"
                Path(directory, "log").mkdir()
                words += [f"--installroot={self.flags.root}", "--releasever=1"]
            run([*words, *(f"--setopt={name}={value}" for name, value in settings.items()), "shell", str(script)],
                pass_fds=[hold])  # fmt: skip

    def _by_dnf(self) -> bool:
        flags = self.flags
        if flags.listed or flags.beside or flags.nodeps or flags.replace_files or flags.database:
            return False
        # dnf 5 has no shell, in which alone one transaction installs and erases
        return flags.through != "rpm" and programs.found("dnf") and run(["dnf", "--version"]).startswith("4.")

    # -- words

    def _where(self) -> list[str]:
        root = ["--root", self.flags.root] if self.flags.root != "/" else []
        return root + (["--dbpath", self.flags.database] if self.flags.database else [])

    def _install(self) -> list[str]:
        flags = self.flags
        words = ["--install" if flags.beside else "--upgrade", "--oldpackage", "--nosignature", *self._quiet()]
        words += ["--noorder"] if flags.listed else []
        words += ["--replacefiles"] if flags.replace_files else []
        return words + ([] if flags.docs else ["--excludedocs"])

    def _quiet(self) -> list[str]:
        return [] if self.flags.scripts else ["--noscripts", "--notriggers"]


_SIGNATURE_HINT = "give the key of whoever signs it in `keys`; `signature: none` installs it unsigned"


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except TedError as error:
        raise InstallError(f"{what}: {error.message}", hint="nothing was changed; mend the distribution") from error


def _copy(source: Path, copy: str) -> bool:
    """Copy a database; return whether nothing of it went away meanwhile.

    Raises:
        InstallError: It cannot be copied.
    """
    try:
        shutil.copytree(source, copy)
    except shutil.Error as error:
        failed = [str(each[0]) for each in error.args[0]]
        if not all(os.path.exists(path) for path in failed):
            return False
        raise InstallError(f"the rpm database cannot be copied: {error.args[0][0][2]}",
                           hint="is there room in the temporary directory, and may it be read?") from error  # fmt: skip
    except OSError as error:
        raise InstallError(f"the rpm database cannot be copied: {error}",
                           hint="is there room in the temporary directory, and may it be read?") from error  # fmt: skip
    return True


def _listed(text: str) -> dict[Package, str]:
    found: dict[Package, str] = {}
    for line in text.splitlines():
        name, epoch, version, arch, sha256, sha1 = line.split("\t")
        if name != "gpg-pubkey":
            whole = version if epoch in ("0", "(none)") else f"{epoch}:{version}"
            found[Package(name, arch, whole)] = next((each for each in (sha256, sha1) if each != "(none)"), "")
    return found


def _paths(act: Act) -> list[str]:
    return [os.path.abspath(path) for _, path in act.install]


def _names(packages: Sequence[Package]) -> list[str]:
    """Return packages as rpm and dnf take them: name-version-release.arch."""
    return [f"{each.name}-{each.version.partition(':')[2] or each.version}.{each.arch}" for each in packages]
