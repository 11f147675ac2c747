"""The workflow of a TUF client, by ``tuf.ngclient``, over whatever fetches a catalog's files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient import (  # type: ignore[attr-defined]
    FetcherInterface,
    Updater,
    UpdaterConfig,
)

from ted.errors import MissingContentError, RefusedError, TedError
from ted.trust import chain as chains
from ted.trust import names

_BASE_URL = "ted:/"
_Ask = Callable[[str, int], bytes]


def run_client(ask: _Ask, timestamp: bytes, anchor: bytes, scratch: Path) -> None:
    """Bring a catalog in ``scratch`` up to date.

    Args:
        ask: Fetches a file of the sender's: (name, most bytes).
        timestamp: The sender's, which is here already.
        anchor: The root that is trusted.
        scratch: Holds what was trusted so far, as the client keeps it.

    Raises:
        TufError: Something does not verify.
        DownloadError: A file did not come; its cause is an error of ours.
    """
    config = UpdaterConfig(
        root_max_length=names.MAX_ROOT_BYTES,
        timestamp_max_length=names.MAX_TIMESTAMP_BYTES,
        snapshot_max_length=names.MAX_METADATA_BYTES,
        targets_max_length=names.MAX_METADATA_BYTES,
        prefix_targets_with_hash=False,
    )
    updater = Updater(str(scratch), _BASE_URL, fetcher=_Fetcher(ask, timestamp), config=config, bootstrap=anchor)
    updater.refresh()
    # every role, also of distributions this node does not take: its children may
    for role in chains.delegated_roles(chains.read_targets(scratch)):
        updater.get_targetinfo(names.target_path(names.distribution_of(role) or "", "any"))


class _Fetcher(FetcherInterface):  # type: ignore[misc,unused-ignore]
    """Carries the client's requests to the sender; hands over a timestamp that is already here."""

    def __init__(self, ask: _Ask, timestamp: bytes) -> None:
        self._ask = ask
        self._timestamp: bytes | None = timestamp

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter([self._get(url, names.MAX_METADATA_BYTES)])

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        data = self._get(url, max_length)
        if len(data) > max_length:
            raise DownloadLengthMismatchError(f"{url}: {len(data)} bytes, at most {max_length} expected")
        yield io.BytesIO(data)

    def _get(self, url: str, max_bytes: int) -> bytes:
        name = unquote(url.removeprefix(_BASE_URL))
        if name == "timestamp.json" and self._timestamp is not None:
            return self._timestamp
        is_root = name.endswith(".root.json")
        try:
            data = self._ask(name, max_bytes)
        except (MissingContentError, RefusedError) as error:
            if is_root:  # the client's question: is there a newer root?
                raise DownloadHTTPError(str(error), 404) from error
            raise DownloadError(str(error)) from error
        except TedError as error:
            raise DownloadError(str(error)) from error
        if is_root:
            self._timestamp = None  # it may be signed by keys this root has withdrawn
        return data
