"""dpkg, with apt to look ahead where it is there.

Rules:
 * apt gets the packages given and no others: no source, no network, no recommendation. It says what would be removed
   too and in which order things go; anything beyond what the distribution says is refused.
 * dpkg does it. Configuration files that were changed stay as they are; nobody is asked.
 * Signatures are those inside the packages (``_gpgorigin`` and the like), checked by gpgv.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from ted.errors import InstallError, TargetError, TedError, TrustError
from ted_plugins.packages import deb_file, programs, proof
from ted_plugins.packages.manager import Act, Flags, Foretold
from ted_plugins.packages.model import Package
from ted_plugins.packages.programs import run
from ted_plugins.packages.versions import compare_deb

_FORMAT = r"${Package}\t${Architecture}\t${Version}\t${db:Status-Status}\n"
_LINE = re.compile(r"(Inst|Remv|Conf|Purg) ([A-Za-z0-9.+-]+)(?::[a-z0-9-]+)? ")
_WORDS = {"Inst": "unpack", "Conf": "configure", "Remv": "remove", "Purg": "remove"}
_CHUNK = 1 << 20
_LOCK_S, _POLL_S = 120.0, 0.2
_APT = """\
Dir "{directory}";
Dir::State "{directory}/state";
Dir::State::status "{status}";
Dir::State::extended_states "{directory}/state/extended";
Dir::Cache "{directory}/cache";
Dir::Etc "{directory}/etc";
Dir::Log "{directory}";
APT::Install-Recommends "0";
APT::Get::Allow-Downgrades "1";
APT::Get::Reinstall "1";
APT::Get::AllowUnauthenticated "1";
APT::Get::Download "0";
Debug::NoLocking "1";
"""


def unavailable() -> str | None:
    """Say why packages cannot be installed here; ``None`` when they can."""
    missing = [program for program in ("dpkg", "dpkg-query", "dpkg-deb") if not programs.found(program)]
    return f"{', '.join(missing)} not installed" if missing else None


@dataclass(frozen=True)
class Deb:
    """The packages below one root."""

    flags: Flags
    suffix: str = "deb"
    read = staticmethod(deb_file.read)
    compare = staticmethod(compare_deb)

    # -- what is there

    @property
    def _admin(self) -> Path:
        return Path(self.flags.root, "var/lib/dpkg")

    def installed(self) -> dict[Package, str]:
        """Return every package that is there; one that is there in part only bears its state in the version."""
        found: dict[Package, str] = {}
        for name, arch, version, status in self._query():
            if status == "installed":
                found[Package(name, arch, version)] = ""
            elif status not in ("not-installed", "config-files"):
                found[Package(name, arch, f"{version} ({status})")] = ""
        return found

    def _query(self) -> list[tuple[str, str, str, str]]:
        if not (self._admin / "status").is_file():
            return []
        try:
            text = run(["dpkg-query", f"--admindir={self._admin}", "-W", f"--showformat={_FORMAT}"])
        except TargetError as error:
            if "no packages found" in error.message.lower():
                return []
            raise
        rows = [line.split("\t") for line in text.splitlines()]
        return [(row[0], row[1], row[2], row[3]) for row in rows if len(row) == 4]

    def leaves_traces(self, package: Package) -> bool:
        """Return whether configuration files of an earlier installation are there."""
        return any(row[0] == package.name and row[3] == "config-files" for row in self._query())

    def cached(self, package: Package) -> list[str]:
        """Return apt's copy of a package."""
        name = f"{package.name}_{package.version.replace(':', '%3a')}_{package.arch}.deb"
        roots = dict.fromkeys((self.flags.root, "/"))
        paths = [Path(root, "var/cache/apt/archives", name) for root in roots]
        return [str(path) for path in paths if path.is_file()]

    def rebuild(self, package: Package, target: IO[bytes]) -> None:
        """Write an installed package as a file: from dpkg's records, and the disk."""
        fields = self._fields(package)
        scripts: dict[str, str] = {}
        files: list[tuple[str, str]] = []
        for path in sorted((self._admin / "info").iterdir()):
            owner, _, kind = path.name.rpartition(".")
            if owner not in (package.name, f"{package.name}:{package.arch}"):
                continue
            if kind == "list":
                names = path.read_text(errors="surrogateescape").splitlines()
                files = [(name.rstrip("/") or "/", self._real(name)) for name in names if name != "/."]
            else:
                scripts[kind] = str(path)
        with tempfile.TemporaryFile() as control, tempfile.TemporaryFile() as data:
            deb_file.repack(fields, scripts, files, target, (control, data))

    def _fields(self, package: Package) -> dict[str, str]:
        with open(self._admin / "status", encoding="utf-8", errors="replace") as status:
            for fields in deb_file.paragraphs(line.rstrip("\n") for line in status):
                if (fields.get("Package"), fields.get("Architecture")) == (package.name, package.arch):
                    return fields
        raise InstallError(f"{package}: is not in dpkg's records")

    def _real(self, name: str) -> str:
        """Return where a file of a package lies: diverted, where somebody diverted it."""
        diversions = self._admin / "diversions"
        lines = diversions.read_text(errors="surrogateescape").splitlines() if diversions.is_file() else []
        moved = dict(zip(lines[0::3], lines[1::3], strict=False))
        return self.flags.root.rstrip("/") + moved.get(name, name)

    # -- before anything happens

    def check_signatures(self, files: Sequence[tuple[Package, str]], keys: Sequence[bytes]) -> None:
        """Check the signatures inside the packages; one that holds is enough."""
        for package, path in files:
            with open(path, "rb") as file:
                parts = deb_file.members(file)
                signatures = [part for part in parts if part.name.startswith("_gpg")]
                if not signatures:
                    raise TrustError(f"{package}: is not signed", hint=_SIGNATURE_HINT)
                signed = parts[: parts.index(signatures[0])]
                if [part.name.partition(".")[0] for part in signed] != ["debian-binary", "control", "data"]:
                    raise TrustError(f"{package}: its signature is not over all of it", hint=_SIGNATURE_HINT)
                self._check_any(package, file, signatures, signed, keys)

    @staticmethod
    def _check_any(
        package: Package, file: BinaryIO, signatures: Sequence[deb_file.Member], signed: Sequence[deb_file.Member],
        keys: Sequence[bytes],
    ) -> None:  # fmt: skip
        refused: TedError | None = None
        for each in signatures:
            file.seek(each.offset)
            signature = file.read(min(each.size, proof.MAX_KEY_BYTES))
            try:
                proof.check(keys, signature, _bytes_of(file, signed), TrustError, str(package))
            except TrustError as error:
                refused = error
            else:
                return
        assert refused is not None
        raise refused

    def foretell(self, act: Act) -> Foretold:
        """Ask apt what would happen, where it is there; else what is asked for."""
        there = self.installed()
        if self.flags.beside:
            self._refuse_replacing(act, there)
        if self.flags.through == "dpkg" or self.flags.nodeps or not programs.found("apt-get"):
            return Foretold(self._after(act, there, act.erase), act)
        said = self._ask_apt(act)
        numbers = {package.name: number for number, (package, _) in enumerate(act.install)}
        erased = {package.name: number for number, package in enumerate(act.erase)}
        steps: list[tuple[str, tuple[int, ...]]] = []
        for kind, name in _LINE.findall(said):
            word = _WORDS[kind]
            known = erased if word == "remove" else numbers
            if name not in known:
                done = "removed" if word == "remove" else "installed"
                raise InstallError(
                    f"the packages do not fit together: {name} would be {done}",
                    hint="name it in `erase` or give it a version that fits; nothing was changed",
                )
            if steps and steps[-1][0] == word:
                steps[-1] = (word, (*steps[-1][1], known[name]))
            else:
                steps.append((word, (known[name],)))
        ordered = () if self.flags.listed else tuple(steps)
        return Foretold(self._after(act, there, act.erase), Act(act.install, act.erase, ordered))

    def _after(self, act: Act, there: dict[Package, str], gone: Sequence[Package]) -> frozenset[Package]:
        arch_of = {(package.name, package.arch) for package, _ in act.install}
        single = {package.name for package, _ in act.install if not self._is_multi(package.name, there)}
        kept = {each for each in there if (each.name, each.arch) not in arch_of and each.name not in single}
        return frozenset((kept | {package for package, _ in act.install}) - set(gone))

    @staticmethod
    def _is_multi(name: str, there: dict[Package, str]) -> bool:
        """Return whether a package is there for more than one architecture."""
        return sum(each.name == name for each in there) > 1

    def _refuse_replacing(self, act: Act, there: dict[Package, str]) -> None:
        for package, _ in act.install:
            if other := next((each for each in there if (each.name, each.arch) == (package.name, package.arch)), None):
                raise InstallError(
                    f"{package}: {other.version} is installed, and `operation: install` replaces nothing",
                    hint="`operation: upgrade` replaces it; dpkg holds one version of a package at a time",
                )

    def _ask_apt(self, act: Act) -> str:
        with tempfile.TemporaryDirectory(prefix="ted-apt-") as directory:
            for name in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d", "etc/preferences.d",
                         "etc/apt.conf.d", "etc/trusted.gpg.d"):  # fmt: skip
                Path(directory, name).mkdir(parents=True)
            Path(directory, "etc/sources.list").touch()
            status = self._admin / "status"
            if not status.is_file():
                status = Path(directory, "status")
                status.touch()
            Path(directory, "config").write_text(_APT.format(directory=directory, status=status))
            words = [os.path.abspath(path) for _, path in act.install]
            words += [f"{package.name}-" for package in act.erase]
            try:
                return run(["apt-get", "-s", "-q", "-y", "install", *words], env={"APT_CONFIG": f"{directory}/config"})
            except TargetError as error:
                raise InstallError(
                    f"the packages do not fit together: {error.message}",
                    hint="nothing was changed; mend the distribution",
                ) from error

    def test(self, act: Act) -> None:
        """Run ``dpkg --dry-run``."""
        # where apt found the steps, what is in the way now will be out of it
        ahead = ["--force-depends", "--force-conflicts", "--force-breaks"] if act.steps else []
        for words in ([*self._forces(), *ahead, "--install", *_paths(act)] if act.install else [],
                      ["--force-depends", "--remove", *_names(act.erase)] if act.erase else []):  # fmt: skip
            if words and (self._admin / "status").is_file():
                try:
                    run([*self._dpkg(), "--dry-run", *words])
                except TargetError as error:
                    raise InstallError(
                        f"the test of the installation failed: {error.message}", hint="nothing was changed"
                    ) from error

    # -- doing it

    def perform(self, act: Act, *, hold: int) -> None:
        """Do it in the steps apt told; else install in the order given, then erase."""
        self._make_admin()
        with self._frontend() as env:
            for word, numbers in act.steps or (("install", tuple(range(len(act.install)))), ("remove", ())):
                if word in ("unpack", "install") and act.install:
                    paths = [os.path.abspath(act.install[number][1]) for number in numbers]
                    how = "--install" if word == "install" else "--unpack"
                    run([*self._dpkg(), *self._forces(), how, *paths], env=env, pass_fds=[hold])
                elif word == "configure":
                    names = _names([act.install[number][0] for number in numbers])
                    run([*self._dpkg(), *self._forces(), "--configure", *names], env=env, pass_fds=[hold])
                elif word == "remove" and act.erase:
                    erased = [act.erase[number] for number in numbers] or list(act.erase)
                    how = "--purge" if self.flags.purge else "--remove"
                    # with apt's blessing what depends on it is on its way; without, dpkg looks itself
                    deps = ["--force-depends"] if act.steps or self.flags.nodeps else []
                    run([*self._dpkg(), *deps, how, *_names(erased)], env=env, pass_fds=[hold])
            run([*self._dpkg(), *self._forces(), "--configure", "--pending"], env=env, pass_fds=[hold])

    def restore(self, act: Act, *, again: Sequence[Package], traceless: Sequence[Package], hold: int) -> None:
        """Go back, with dependencies out of the way: what was there fitted together."""
        del again
        force = ["--force-depends", "--force-remove-reinstreq", "--force-conflicts", "--force-breaks"]
        with self._frontend() as env:
            names = {row[0] for row in self._query() if row[3] not in ("not-installed", "config-files")}
            gone = [each for each in act.erase if each.name in names]
            kept = {package.name for package, _ in act.install}
            for how in ("--purge", "--remove"):
                part = [each for each in gone if (each in traceless) == (how == "--purge") and each.name not in kept]
                if part:
                    run([*self._dpkg(), *force, how, *_names(part)], env=env, pass_fds=[hold])
            # dpkg tells what is there in part only; what is there as it was needs no script of its own to agree
            there = self.installed()
            if left := Act(tuple(each for each in act.install if each[0] not in there)).install:
                words = [*self._forces(), *force, "--force-overwrite", "--install", *_paths(Act(left))]
                run([*self._dpkg(), *words], env=env, pass_fds=[hold])
            self._forget_traces(traceless, env, hold)

    def _forget_traces(self, traceless: Sequence[Package], env: dict[str, str], hold: int) -> None:
        left = {row[0] for row in self._query() if row[3] == "config-files"}
        if names := [each.name for each in traceless if each.name in left]:
            run([*self._dpkg(), "--purge", *names], env=env, pass_fds=[hold])

    def _make_admin(self) -> None:
        """Make what dpkg expects below a root that never had a package."""
        for name in ("info", "updates", "triggers"):
            (self._admin / name).mkdir(parents=True, exist_ok=True)
        for name in ("status", "available"):
            (self._admin / name).touch()

    @contextlib.contextmanager
    def _frontend(self) -> Iterator[dict[str, str]]:
        """Hold the lock by which package managers keep out of each other's way; yield what dpkg must know of it."""
        if not self._admin.is_dir():
            yield {}
            return
        with open(self._admin / "lock-frontend", "a", encoding="utf-8") as lock:
            deadline = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise TargetError(
                            "another package manager is at work", hint="wait for it, or end it, and extract again"
                        ) from error
                    time.sleep(_POLL_S)
            yield {"DPKG_FRONTEND_LOCKED": "1"}

    # -- words

    def _dpkg(self) -> list[str]:
        return ["dpkg", f"--root={self.flags.root}"] if self.flags.root != "/" else ["dpkg"]

    def _forces(self) -> list[str]:
        words = ["--force-confdef", "--force-confold"]
        words += ["--force-overwrite"] if self.flags.replace_files else []
        return words + (["--force-depends"] if self.flags.nodeps else [])


_SIGNATURE_HINT = "sign it with debsigs, and give the key in `keys`; `signature: none` installs it unsigned"


def _bytes_of(file: BinaryIO, parts: Sequence[deb_file.Member]) -> Iterator[bytes]:
    for part in parts:
        offset, end = part.offset, part.offset + part.size
        while offset < end:
            file.seek(offset)
            chunk = file.read(min(end - offset, _CHUNK))
            if not chunk:
                return
            yield chunk
            offset += len(chunk)


def _paths(act: Act) -> list[str]:
    return [os.path.abspath(path) for _, path in act.install]


def _names(packages: Sequence[Package]) -> list[str]:
    """Return packages as dpkg takes them."""
    return [each.name if each.arch == "all" else f"{each.name}:{each.arch}" for each in packages]
