"""Signed packages: what is unsigned, signed by somebody else or tampered with never reaches a package manager."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_depot import PackageDepot, Signer, Workshop, run

from ted.errors import BuildError, OptionsError, TrustError


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signer, Signer]]:
    # the path of gpg-agent's socket must be short
    home = Path(os.path.realpath(tmp_path_factory.mktemp("k")))
    pair = Signer(home, "vendor"), Signer(home, "stranger")
    yield pair
    for each in pair:
        each.close()


@pytest.fixture(params=["rpm", "dpkg"])
def depot(tmp_path: Path, request: pytest.FixtureRequest) -> PackageDepot:
    return PackageDepot(tmp_path, request.param, Workshop(tmp_path / "workshop"))


def test_a_signed_package_is_installed_and_others_are_refused(
    depot: PackageDepot, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    vendor, stranger = signers
    plain = depot.make("lib")
    strict = {"signature": "required", "keys": [str(vendor.key)]}
    with pytest.raises(BuildError, match="is not signed"):
        depot.pack(plain, **strict)
    depot.pack(stranger.sign(plain, tmp_path / "stranger"), **strict)
    for check in (True, False):
        with pytest.raises(TrustError, match=r"lib.*signature does not hold"):
            depot.extract(check=check)
    signed = vendor.sign(plain, tmp_path / "vendor")
    tampered = tmp_path / signed.name
    data = bytearray(signed.read_bytes())
    at = -40 if depot.kind == "rpm" else bytes(data).index(b"data.tar") + 100
    data[at] ^= 1
    tampered.write_bytes(data)
    depot.pack(tampered, **strict)
    with pytest.raises(TrustError, match="does not hold"):
        depot.extract()
    assert depot.installed() == {}
    assert list(depot.host.states.transactions.iterdir()) == []
    depot.pack(signed, **strict)
    depot.extract()
    assert depot.installed() == {"lib": "1"}


def test_without_keys_rpm_asks_the_nodes_own(tmp_path: Path, signers: tuple[Signer, Signer]) -> None:
    depot = PackageDepot(tmp_path, "rpm", Workshop(tmp_path / "workshop"))
    signed = signers[0].sign(depot.make("lib"), tmp_path / "vendor")
    depot.pack(signed, signature="required")
    with pytest.raises(TrustError, match="lib"):
        depot.extract()
    run("rpmkeys", "--root", str(depot.system), "--import", str(signers[0].key))
    depot.extract()
    assert depot.installed() == {"lib": "1"}


def test_deb_needs_keys_or_an_opt_out() -> None:
    from ted import plugins

    with pytest.raises(OptionsError, match="signature: none"):
        plugins.validate_options("deb", {"packages": ["/srv/a.deb"]})


def test_what_is_no_key_is_refused_at_the_build(depot: PackageDepot, tmp_path: Path) -> None:
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----\n" for word in ("BEGIN", "END"))
    (tmp_path / "no.asc").write_text(f"{begin}\n!!!\n{end}")
    with pytest.raises(BuildError, match="no public key"):
        depot.pack(depot.make("lib"), keys=[str(tmp_path / "no.asc")])


@pytest.mark.parametrize(
    "words",
    [
        b" " * 25_000 + b"\x0b " + b"f" * 64 + b" 1 main/binary-amd64/Packages",  # behind what gpgv looks at
        b"\n-----BEGIN PGP MESSAGE-----\n " + b"f" * 64 + b" 1 main/binary-amd64/Packages",
    ],
)
def test_what_a_signature_does_not_cover_is_not_read(
    tmp_path: Path, signers: tuple[Signer, Signer], words: bytes
) -> None:
    from ted_plugins.packages import proof

    vendor = signers[0]
    text = b"Origin: t\nSHA256:\n " + b"0" * 64 + b" 1 main/binary-amd64/Packages.xz\nArchitectures: amd64\n"
    (tmp_path / "Release").write_bytes(text)
    vendor.gpg("--output", str(tmp_path / "InRelease"), "--clear-sign", str(tmp_path / "Release"))
    signed = (tmp_path / "InRelease").read_bytes()
    proof.check([vendor.key.read_bytes()], signed, None, BuildError, "InRelease")
    assert proof.clear_text(signed) + b"\n" == text
    with pytest.raises(ValueError, match=r"line of more than|more than one signed message"):
        proof.clear_text(signed.replace(b"SHA256:", b"SHA256:" + words))


def test_a_signature_over_sha1_promises_nothing(tmp_path: Path, signers: tuple[Signer, Signer]) -> None:
    from ted_plugins.packages import proof
    from ted_plugins.sources.checksums import verify_signature

    vendor, data, signature = signers[0], tmp_path / "data", tmp_path / "data.sig"
    data.write_bytes(b"data")
    for algorithm, holds in (("SHA256", True), ("SHA1", False)):
        vendor.gpg("--digest-algo", algorithm, "--output", str(signature), "--detach-sign", str(data))
        told = signature.read_bytes()
        for check in (
            lambda told=told: proof.check([vendor.key.read_bytes()], told, [b"data"], TrustError, "data"),
            lambda told=told: verify_signature(data, told, str(vendor.key), "data"),
        ):
            with contextlib.nullcontext() if holds else pytest.raises(TrustError, match="does not hold"):
                check()


def test_a_signature_by_a_key_that_expired_holds_no_more(tmp_path: Path, signers: tuple[Signer, Signer]) -> None:
    """gpgv itself is content with it."""
    from ted_plugins.packages import proof
    from ted_plugins.sources.checksums import verify_signature

    vendor, data, signature = signers[0], tmp_path / "data", tmp_path / "data.sig"
    data.write_bytes(b"data")
    past = ("--faked-system-time", "20200101T000000!")
    vendor.gpg(*past, "--quick-gen-key", "old@example.com", "rsa2048", "sign", "1d")
    vendor.gpg(*past, "--local-user", "old@example.com", "--output", str(signature), "--detach-sign", str(data))
    old = tmp_path / "old.asc"
    vendor.gpg("--armor", "--output", str(old), "--export", "old@example.com")
    with pytest.raises(TrustError, match="its key is expired"):
        proof.check([old.read_bytes()], signature.read_bytes(), [b"data"], TrustError, "data")
    with pytest.raises(TrustError, match="its key is expired"):
        verify_signature(data, signature.read_bytes(), str(old), "data")


def test_a_gpgv_that_does_not_end_is_ended(signers: tuple[Signer, Signer], monkeypatch: pytest.MonkeyPatch) -> None:
    from ted_plugins.packages import proof

    monkeypatch.setattr(proof, "_TIMEOUT_S", 0.5)
    began_s = time.monotonic()

    def endless() -> Iterator[bytes]:
        while time.monotonic() - began_s < 30:
            time.sleep(0.02)
            yield bytes(65536)

    with pytest.raises(TrustError, match=r"data: .* gpgv did not end within 0\.5 s"):
        proof.check([signers[0].key.read_bytes()], b"\x88\x00", endless(), TrustError, "data")
    assert time.monotonic() - began_s < 20


def test_a_gpgv_with_much_to_say_holds_nothing_up(
    signers: tuple[Signer, Signer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ted_plugins.packages import proof

    monkeypatch.setattr(proof, "_TIMEOUT_S", 10)
    nonsense = b"\x88\x00" * 6000  # a signature without a content, again and again: a line of stderr for each
    with pytest.raises(TrustError, match=r"data: its signature does not hold: .*too short"):
        proof.check([signers[0].key.read_bytes()], nonsense, [b"data"], TrustError, "data")


def test_a_release_of_another_suite_is_no_answer() -> None:
    from ted_plugins.packages.repositories import _read_release

    text = b"Suite: testing\nCodename: trixie\nSHA256:\n " + b"a" * 64 + b" 1 main/binary-all/Packages\n"
    assert _read_release(text, "here", "trixie").fields["Suite"] == "testing"
    with pytest.raises(BuildError, match="of suite testing or trixie, not of stable"):
        _read_release(text, "here", "stable")
