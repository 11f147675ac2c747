"""Signatures of a Distributor under routing slips.

Rules:
 * Slips are signed with the online ``timestamp`` key: being able to send needs no more than being able
   to say what is current.
 * What is signed starts with a context of its own: a slip never passes for metadata, nor metadata for a slip.
 * Verified by keys and threshold of a trusted root; a receiver whose root is older than the signing key
   refreshes its catalog and asks again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import Error as SignatureError

from ted.errors import SlipError, TrustError
from ted.trust.chain import parse_root
from ted.trust.keys import KeyStore
from ted.trust.tuf_api import Root, Signature, TufError

CONTEXT = b"ted routing slip 1\0"
_MAX_SIGNATURES = 16
_KEYID_RE = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_RE = re.compile(r"(?:[0-9a-f]{2}){1,4096}")

Signatures = Sequence[Mapping[str, Any]]


class SlipSigner:
    """Signs with the ``timestamp`` key(s) that ``keys`` (``<config>/keys``) holds."""

    def __init__(self, keys: Path | KeyStore) -> None:
        self._keys = keys if isinstance(keys, KeyStore) else KeyStore(keys)

    def sign(self, payload: bytes) -> list[dict[str, str]]:
        """Return ``[{"keyid", "sig"}]``, hexadecimal; while keys change, one of each.

        Raises:
            TrustError: No key to sign with.
        """
        signers = self._keys.signers("timestamp")
        if not signers:
            raise TrustError(f"no timestamp key in {self._keys.directory}", hint="ted keys create --distributor NAME")
        signed = [signer.sign(CONTEXT + payload) for signer in signers]
        return [{"keyid": signature.keyid, "sig": signature.signature} for signature in signed]


def verify(payload: bytes, signatures: Signatures, root: bytes | Root) -> None:
    """Return if ``payload`` is signed by enough of the root's timestamp keys.

    Args:
        payload: What was signed, as it came.
        signatures: ``[{"keyid", "sig"}]`` as it came.
        root: A trusted ``root.json``.

    Raises:
        SlipError: It is not.
    """
    try:
        trusted = root if isinstance(root, Root) else parse_root(root)
        given = _parsed(signatures)
        held = trusted.get_verification_result("timestamp", CONTEXT + payload, given)
    except (TufError, SignatureError, ValueError) as error:
        raise SlipError(f"a routing slip with unusable signatures: {error}") from error
    if not held:
        raise SlipError(
            "a routing slip that its Distributor did not sign",
            hint="if the Distributor changed its keys, refresh its catalog; otherwise the sender forged it",
        )


def _parsed(signatures: object) -> dict[str, Signature]:
    if not isinstance(signatures, list | tuple) or len(signatures) > _MAX_SIGNATURES:
        raise ValueError("not a short list")
    parsed = {}
    for item in signatures:
        keyid, sig = (item.get("keyid"), item.get("sig")) if isinstance(item, Mapping) else (None, None)
        if not (isinstance(keyid, str) and _KEYID_RE.fullmatch(keyid)):
            raise ValueError("a key id that is not one")
        if not (isinstance(sig, str) and _SIGNATURE_RE.fullmatch(sig)):
            raise ValueError("a signature that is not one")
        parsed[keyid] = Signature(keyid, sig)
    return parsed
