"""The server of a hop: offers and receipts come in, metadata and blocks go out. See docs/protocol.md.

Rules:
 * The peer is who its certificate says (without TLS, who it says: that is only for a LAN one trusts).
 * Names from outside are checked before a path is made of them; every body and count is bounded.
 * Blocks are streamed in the order asked, each as soon as this node has verified it; a failure in the middle cuts
   the connection, so that nothing false can look like the end.
 * Every error has one shape: {"error": {"type", "message", "hint", "exit_code"}}; 503 means "try again".
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from ted.content.record import PackRef, is_name, is_stamp
from ted.errors import (
    FormatError,
    MissingContentError,
    RepositoryError,
    TedError,
    TransferError,
    TrustError,
)
from ted.transfer.client import packed
from ted.transfer.packs import PackStore, Run, ServedPack, blocks_of, runs_bytes
from ted.trust.realm import peer_name
from ted.trust.view import read_metadata

log = logging.getLogger("ted.server")

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_SMALL_BODY_BYTES = 4 * 1024 * 1024
MAX_RUNS = 65_536
STREAMS_PER_PEER = 16
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 64 * 1024, 4 * 1024 * 1024
WRITE_BYTES = 256 * 1024
PROTOCOL = 1


class Exchange(Protocol):
    """What the node does with what peers say."""

    async def offered(self, data: Any, peer: str) -> dict[str, Any]:
        """Take an offer; return the states known of its subtree."""

    async def receipts(self, data: Any, peer: str) -> None:
        """Take receipts from a node below."""

    async def offers_for(self, peer: str) -> list[dict[str, Any]]:
        """Return the slips that ``peer`` should have."""


class PeerServer:
    """The HTTP application peers talk to."""

    def __init__(self, node: str, working_directory: Path, packs: PackStore, exchange: Exchange, *,
                 executor: Executor, timeout_s: float) -> None:  # fmt: skip
        self._node = node
        self._root = working_directory
        self._packs = packs
        self._exchange = exchange
        self._executor = executor
        self._timeout_s = timeout_s
        self._streams: Counter[str] = Counter()

    def application(self) -> web.Application:
        """Return the application with every route of the protocol."""
        app = web.Application(middlewares=[errors_have_one_shape], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(_without_needless_headers)
        pack = "{distributor}/{distribution}/{revision}"
        app.add_routes([
            web.get("/v1/ping", self._ping),
            web.post("/v1/offer", self._offer),
            web.get("/v1/offers", self._offers),
            web.post("/v1/receipts", self._receipts),
            web.get("/v1/catalog/{distributor}/{name}", self._metadata),
            web.get(f"/v1/record/{pack}", self._record),
            web.get(f"/v1/blocks/{pack}", self._blocks),
            web.post(f"/v1/pack/{pack}", self._pack),
        ])  # fmt: skip
        return app

    async def _ping(self, request: web.Request) -> web.Response:
        _peer(request)
        return web.json_response({"node": self._node, "protocol": PROTOCOL})

    async def _offer(self, request: web.Request) -> web.Response:
        peer = _peer(request)
        return _answer(await self._exchange.offered(await self._json(request, MAX_BODY_BYTES), peer))

    async def _offers(self, request: web.Request) -> web.Response:
        return _tagged(request, {"offers": await self._exchange.offers_for(_peer(request))})

    async def _receipts(self, request: web.Request) -> web.Response:
        peer = _peer(request)
        await self._exchange.receipts(await self._json(request, MAX_SMALL_BODY_BYTES), peer)
        return web.json_response({})

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        _peer(request)
        distributor = check_name(request.match_info["distributor"])
        directory = self._root / distributor / ".catalog"
        data = await self._in_thread(read_metadata, directory, request.match_info["name"])
        if data is None:
            raise MissingContentError(f"{self._node} has no metadata {request.match_info['name']} of {distributor}")
        return web.Response(body=data, content_type="application/json")

    async def _record(self, request: web.Request) -> web.StreamResponse:
        return await self._small_file(request, "REVISION.TED")

    async def _blocks(self, request: web.Request) -> web.StreamResponse:
        return await self._small_file(request, "BLOCKS.TED")

    async def _small_file(self, request: web.Request, name: str) -> web.StreamResponse:
        _peer(request)
        path = self._root.joinpath(*_pack_key(request), name)
        try:
            data = await self._in_thread(path.read_bytes)
        except OSError as error:
            raise MissingContentError(f"{self._node} has not got {'/'.join(_pack_key(request))}/{name}") from error
        return web.Response(body=data, content_type="application/octet-stream")

    async def _pack(self, request: web.Request) -> web.StreamResponse:
        peer = _peer(request)
        key = _pack_key(request)
        asked = await self._json(request, MAX_SMALL_BODY_BYTES)
        ref, runs = _wanted(key[2], asked)
        with self._place_for(peer), self._packs.open(key, ref) as pack:
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = runs_bytes(ref, runs)
            if runs:  # an answer only once there is something: a refusal keeps its shape
                await pack.available(runs[0][0], self._timeout_s)
            await response.prepare(request)
            await self._stream(response, pack, runs)
            await response.write_eof()
            return response

    @contextmanager
    def _place_for(self, peer: str) -> Iterator[None]:
        if self._streams[peer] >= STREAMS_PER_PEER:
            raise TransferError(f"{peer} has {STREAMS_PER_PEER} transfers open here already")
        self._streams[peer] += 1
        try:
            yield
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _stream(self, response: web.StreamResponse, pack: ServedPack, runs: Sequence[Run]) -> None:
        try:
            for block in blocks_of(runs):
                await pack.available(block, self._timeout_s)
                for start in range(0, pack.block_size(block), WRITE_BYTES):
                    data = pack.read_cached(block, start, WRITE_BYTES)
                    if data is None:
                        data = await self._in_thread(pack.read, block, start, WRITE_BYTES)
                    async with asyncio.timeout(self._timeout_s):  # a reader that stalls is let go
                        await response.write(data)
        except (TedError, TimeoutError) as error:
            # the head is out: closing early is the only honest answer left
            raise ConnectionResetError(str(error)) from error

    async def _json(self, request: web.Request, max_bytes: int) -> Any:
        """Return the body as JSON; it is bounded while it comes, unpacked, and read in a thread when it is large."""
        body = bytearray()
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > max_bytes:
                raise FormatError(f"the request's body is larger than {max_bytes} bytes")
        try:
            return await self._in_thread(json.loads, body) if len(body) > WRITE_BYTES else json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FormatError("the request's body is not JSON") from error

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


def _peer(request: web.Request) -> str:
    """Return the name of the node that asks.

    Raises:
        TrustError: Its certificate names no node, or without TLS it does not say who it is.
    """
    transport = request.transport
    ssl_object = transport.get_extra_info("ssl_object") if transport is not None else None
    if ssl_object is not None:
        return peer_name(ssl_object)
    name = request.headers.get("X-Ted-Node")
    if not name:
        raise TrustError("the request does not say which node it is from", hint="peers speak ted's protocol only")
    return check_name(name)


def check_name(name: str) -> str:
    """Return ``name`` when it may be part of a path.

    Raises:
        FormatError: It may not.
    """
    if not is_name(name):
        raise FormatError(f"{name!r:.60} is not a name of ted's", hint="letters, digits and . _ @ + -")
    return name


def check_stamp(stamp: str) -> str:
    """Return ``stamp`` when it names a revision.

    Raises:
        FormatError: It does not.
    """
    if not is_stamp(stamp):
        raise FormatError(f"{stamp!r:.60} is not a revision")
    return stamp


def _pack_key(request: web.Request) -> tuple[str, str, str]:
    info = request.match_info
    return check_name(info["distributor"]), check_name(info["distribution"]), check_stamp(info["revision"])


def _wanted(revision: str, asked: Any) -> tuple[PackRef, list[Run]]:
    """Return the checked sizes and runs of a request for blocks."""
    try:
        size, block_bytes = int(asked["bytes"]), int(asked["block_bytes"])
        runs = [(int(first), int(count)) for first, count in asked["runs"][: MAX_RUNS + 1]]
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(f"not a request for blocks: {error!r}") from error
    if not MIN_BLOCK_BYTES <= block_bytes <= MAX_BLOCK_BYTES or not 0 < size < 2**50 or len(runs) > MAX_RUNS:
        raise FormatError("request for blocks with impossible sizes")
    blocks = -(-size // block_bytes)
    if any(first < 0 or count <= 0 or first + count > blocks for first, count in runs):
        raise FormatError("request for blocks outside the pack")
    if sum(count for _, count in runs) > blocks:
        raise FormatError("request for more blocks than the pack has")
    ref = PackRef(revision=revision, bytes=size, block_bytes=block_bytes, blocks=blocks, root="", live=((0, blocks),))
    return ref, runs


def _answer(data: Any) -> web.Response:
    body, encoding = packed(data)
    return web.Response(body=body, content_type="application/json", headers=encoding)


def _tagged(request: web.Request, data: Any) -> web.Response:
    """Answer with a tag of the content, or with nothing when that tag is what the peer has."""
    body, encoding = packed(data)
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers={"ETag": tag})
    return web.Response(body=body, content_type="application/json", headers={**encoding, "ETag": tag})


async def _without_needless_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Leave out what no peer reads: a check that finds nothing new is mostly headers."""
    for name in ("Server", "Date"):
        response.headers.pop(name, None)
    if response.status == 304:
        response.headers.pop("Content-Type", None)


def error_answer(error: TedError) -> web.Response:
    """Return the one shape of an error, with a status that says whether trying again can help."""
    status = 400
    if isinstance(error, TrustError):
        status = 403
    elif isinstance(error, MissingContentError):
        status = 404
    elif isinstance(error, TransferError):
        status = 503
    elif isinstance(error, RepositoryError):
        status = 400
    return web.json_response({"error": error.to_dict()}, status=status)


@web.middleware
async def errors_have_one_shape(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error of the tree in the one shape."""
    try:
        return await handler(request)
    except TedError as error:
        log.info("%s %s: %s", request.method, request.path, error)
        return error_answer(error)
