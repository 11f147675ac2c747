"""Checksum files (``SHA256SUMS`` and its like), and signatures over them or over a file.

Rules:
 * A line that is no checksum, no comment and no blank is an error, not a file without a checksum.
 * MD5 and SHA-1 are refused, in signatures too: they promise nothing against somebody who means harm.
 * A signature is verified by ``gpgv`` with the keyring that is given, and with no other key.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ted.errors import BuildError, TrustError

MAX_CHECKSUMS_BYTES = 64 * 1024 * 1024
MAX_SIGNATURE_BYTES = 1024 * 1024
_ALGORITHMS = {64: "sha256", 96: "sha384", 128: "sha512"}
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]{32,128}) [ *](.+)")
_BSD = re.compile(r"([A-Za-z0-9-]{3,10}) \((.+)\) = ([0-9A-Fa-f]{32,128})")
_TIMEOUT_S = 120
_OUTLIVED = re.compile(rb"^\[GNUPG:\] (EXPSIG|EXPKEYSIG|REVKEYSIG)\b", re.MULTILINE)
_WHY = {b"EXPSIG": "it is expired", b"EXPKEYSIG": "its key is expired", b"REVKEYSIG": "its key was revoked"}


def parse_digest(text: str) -> str:
    """Return a digest as ``sha256:...``; the algorithm may be left out.

    Raises:
        ValueError: It is none, or of an algorithm that is too weak.
    """
    algorithm, _, value = text.rpartition(":")
    known = _ALGORITHMS.get(len(value))
    fits = algorithm.lower().replace("-", "") in ("", known)
    if known is None or not fits or not re.fullmatch("[0-9A-Fa-f]+", value):
        raise ValueError(f"{text[:200]!r} is no digest: write sha256: and 64 hexadecimal digits (or sha384, sha512)")
    return f"{known}:{value.lower()}"


def parse_checksums(data: bytes, name: str) -> dict[str, str]:
    """Return the digests (``sha256:...``) of a checksum file, by path as it writes them, without ``./`` before it.

    Args:
        data: The file, as ``sha256sum`` (or ``sha512sum``, with or without ``--tag``) writes it.
        name: What to call it in errors.

    Raises:
        BuildError: It is no such file.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if (gnu := _GNU.fullmatch(line)) is not None:
            escaped, value, path = gnu.groups()
        elif (bsd := _BSD.fullmatch(line)) is not None:
            escaped, value, path = "", bsd[3], bsd[2]
        else:
            raise BuildError(f"{name}: line {number} is no checksum", hint="it must be as sha256sum writes it")
        if len(value) not in _ALGORITHMS:
            raise BuildError(f"{name}: line {number} is MD5 or SHA-1, which promise nothing any more",
                             hint="use SHA256SUMS or SHA512SUMS")  # fmt: skip
        if escaped:
            path = re.sub(r"\\(.)", lambda each: {"n": "\n", "r": "\r"}.get(each[1], each[1]), path)
        digest = f"{_ALGORITHMS[len(value)]}:{value.lower()}"
        if found.setdefault(path.removeprefix("./"), digest) != digest:
            raise BuildError(f"{name}: two checksums for {path[:200]!r}")
    return found


def verify_signature(content: Path, signature: bytes, keyring: str, name: str) -> None:
    """Verify a detached OpenPGP signature.

    Args:
        content: File that was signed.
        signature: Armored or binary.
        keyring: File with the keys to trust, armored or binary.
        name: What to call the content in errors.

    Raises:
        TrustError: It does not hold.
        BuildError: It cannot be verified here.
    """
    program = shutil.which("gpgv")
    if program is None:
        raise BuildError(f"{name}: its signature cannot be verified: there is no gpgv", hint="apt-get install gpgv")
    with tempfile.TemporaryDirectory(prefix="ted-gpgv-") as directory:
        keys, detached = Path(directory, "keys.gpg"), Path(directory, "signature")
        keys.write_bytes(_binary_keys(keyring))
        detached.write_bytes(signature)
        command = [program, "--weak-digest", "SHA1", "--homedir", directory, "--keyring", str(keys)]
        command += ["--status-fd", "1", str(detached), str(content)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"{name}: gpgv did not end within {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise TrustError(f"{name}: its signature does not hold: {last[0][:200]}",
                         hint=f"does {keyring} hold the key of whoever publishes it?")  # fmt: skip
    if (why := outlived(done.stdout)) is not None:
        raise TrustError(f"{name}: its signature does not hold: {why}", hint=f"bring {keyring} up to date")


def outlived(status: bytes) -> str | None:
    """Return why a signature that fits counts for nothing any more, by what gpgv says with ``--status-fd``.

    gpgv itself is content with one that is expired, or by a key that is expired or was revoked.
    """
    found = _OUTLIVED.search(status)
    return _WHY[found[1]] if found is not None else None


def _binary_keys(keyring: str) -> bytes:
    """Return a keyring as gpgv takes it."""
    try:
        data = Path(keyring).read_bytes()
    except OSError as error:
        raise BuildError(f"keyring {keyring}: {error.strerror}", hint="it lies on the Distributor") from error
    if b"-----BEGIN PGP" not in data:
        return data
    blocks = re.findall(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP", data, re.DOTALL)
    try:
        return b"".join(_dearmored(block) for block in blocks)
    except (binascii.Error, ValueError):
        raise BuildError(f"keyring {keyring}: cannot be read", hint="gpg --export KEY > FILE") from None


def _dearmored(block: bytes) -> bytes:
    """Return the packets of one armored block, behind its headers and without the checksum (RFC 9580, 6.2)."""
    lines = [line.strip() for line in block.strip(b"\r\n").splitlines()]
    if b"" in lines:
        lines = lines[lines.index(b"") + 1 :]
    return base64.b64decode(b"".join(line for line in lines if not line.startswith(b"=")), validate=True)
