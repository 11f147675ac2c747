"""The server of a hop: offers and receipts come in, metadata and blocks go out. See docs/protocol.md.

Rules:
 * The peer is who its certificate says (without TLS, who it says: that is only for a LAN one trusts).
 * Names from outside are checked before a path is made of them; every body and count is bounded.
 * Blocks are streamed in the order asked, each as soon as this node has verified it; a failure in the middle cuts
   the connection, so that nothing false can look like the end.
 * Blocks pass the gate out (``ted.transfer.gates``) piece by piece. A transfer that may not begin is told so (503,
   busy) and asks again; one that is held back in the middle shows with a byte now and then that it is alive.
 * At the end of the window that a reader names, no block is begun that would not be finished: the answer ends early.
 * A reader that takes less than the least rate is let go.
 * A peer that goes away in the middle of an answer is no fault of this node: one line in the log says so.
 * A block that the disk cannot read ends its answer early; asked for first after that, it is refused as damaged.
 * Every error has one shape: {"error": {"type", "message", "hint", "exit_code"}}; 503 means "try again".
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from aiohttp import web

from ted.content.blocks import PACK_NAME
from ted.content.durable import UNREADABLE
from ted.content.patch.kept import is_patch_name
from ted.content.record import PackRef, is_name, is_stamp
from ted.errors import (
    BusyError,
    DamagedError,
    FormatError,
    MissingContentError,
    RepositoryError,
    TedError,
    TransferError,
    TrustError,
)
from ted.transfer.client import packed
from ted.transfer.gates import OutputGate, Turn, fit_send_buffer, forget_rate, limit_unsent, segment_bytes
from ted.transfer.pacing import LEAST_QUEUE_BYTES, Patience, Queue, wire_factor
from ted.transfer.packs import PackKey, PackStore, Run, ServedPack, UnreadableError, blocks_of, damaged_at, runs_bytes
from ted.transfer.tls import TlsTransport
from ted.trust.realm import peer_name
from ted.trust.view import read_metadata

log = logging.getLogger("ted.server")

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_SMALL_BODY_BYTES = 4 * 1024 * 1024
MAX_RUNS = 65_536
STREAMS_PER_PEER = 16
MAX_EVERY_S = 86_400
MAX_FOR_S = 366 * 86_400
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 64 * 1024, 4 * 1024 * 1024
LARGE_BODY_BYTES = 256 * 1024
READ_BYTES = 128 * 1024
TURN_BYTES = 1024 * 1024
ALIVE_EVERY_S = 10.0
OVER_S = 5.0  # after the end of a window that a block which was begun may still wait for its turn
PROTOCOL = 1


class Exchange(Protocol):
    """What the node does with what peers say."""

    async def offered(self, data: Any, peer: str) -> dict[str, Any]:
        """Take an offer; return the states known of its subtree."""

    async def receipts(self, data: Any, peer: str) -> None:
        """Take receipts from a node below."""

    async def offers_for(self, peer: str, every_s: float | None) -> list[dict[str, Any]]:
        """Return the slips that ``peer`` should have; it asks again within ``every_s`` seconds, if it says so."""

    async def priority(self, peer: str, distributor: str, distribution: str) -> str:
        """Return the priority of a distribution for ``peer``, as its Distributor signed it."""


class PeerServer:
    """The HTTP application peers talk to."""

    def __init__(self, node: str, working_directory: Path, packs: PackStore, exchange: Exchange, *,
                 executor: Executor, gate: OutputGate, timeout_s: float, min_rate_bytes_s: float) -> None:  # fmt: skip
        self._node = node
        self._root = working_directory
        self._packs = packs
        self._exchange = exchange
        self._executor = executor
        self._gate = gate
        self._timeout_s = timeout_s
        self._alive_every_s = min(ALIVE_EVERY_S, timeout_s / 3)
        self._min_rate_bytes_s = min_rate_bytes_s
        self._streams: Counter[str] = Counter()
        self._unreadable: set[tuple[PackKey, int]] = set()
        """Blocks that the disk could not read the last time."""

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
            web.get(f"/v1/blocks/{pack}/{{patch}}", self._blocks),
            web.post(f"/v1/pack/{pack}/{{patch}}", self._pack),
        ])  # fmt: skip
        return app

    async def _ping(self, request: web.Request) -> web.Response:
        held = self._gate.holds_back(_peer(request), patience_window_s(self._timeout_s))
        return web.json_response({"node": self._node, "protocol": PROTOCOL, "held": held})

    async def _offer(self, request: web.Request) -> web.Response:
        peer = _peer(request)
        return _answer(await self._exchange.offered(await self._json(request, MAX_BODY_BYTES), peer))

    async def _offers(self, request: web.Request) -> web.Response:
        return _tagged(request, {"offers": await self._exchange.offers_for(_peer(request), _every_s(request))})

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
            missing = MissingContentError(f"{self._node} has no metadata {request.match_info['name']} of {distributor}")
            if not request.match_info["name"].endswith(".root.json"):
                raise missing
            log.debug("%s %s: the chain of roots ends before it", request.method, request.path)  # whoever asks looks on
            return error_answer(missing)
        await self._count(request, len(data))
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
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingContentError(f"{self._node} has not got {'/'.join(_pack_key(request))}/{name}") from error
        except OSError as error:
            log.error("%s cannot be read: %s", path, error.strerror)
            if error.errno not in UNREADABLE:
                raise BusyError(f"{self._node} cannot read {path.name} now: {error.strerror}") from error
            raise damaged_at(self._node, _pack_key(request), name) from error
        await self._count(request, len(data))
        return web.Response(body=data, content_type="application/octet-stream")

    async def _count(self, request: web.Request, size_bytes: int) -> None:
        """Count a small answer, which waits for nothing, at the rate of its priority: blocks wait for it."""
        limits, asked = self._gate.limits, request.match_info
        if (limits.high, limits.medium, limits.low) != (None, None, None):
            priority = "medium"
            if "distribution" in asked:
                priority = await self._exchange.priority(_peer(request), asked["distributor"], asked["distribution"])
            self._gate.spend(priority, size_bytes)

    async def _pack(self, request: web.Request) -> web.StreamResponse:
        peer = _peer(request)
        key = _pack_key(request)
        asked = await self._json(request, MAX_SMALL_BODY_BYTES)
        ref, runs = _wanted(key[2], asked)
        until_s = time.monotonic() + _for_s(asked)
        priority = await self._exchange.priority(peer, *key[:2])
        with (
            self._place_for(peer),
            self._packs.open(key, ref) as pack,
            self._gate.join(priority, peer, key[:2]) as turn,
        ):
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = runs_bytes(ref, runs)
            patience = Patience(self._min_rate_bytes_s, patience_window_s(self._timeout_s))
            with _Stream(request, response, turn, patience, alive_every_s=self._alive_every_s,
                         executor=self._executor) as stream:
                if runs:  # an answer only once there is something: a refusal keeps its shape
                    await pack.available(runs[0][0], self._alive_every_s)
                    await self._unless_unreadable(key, pack, runs[0][0])
                    await stream.begin(pack.block_size(runs[0][0]))
                await response.prepare(request)
                if await self._stream(stream, key, pack, runs, until_s):
                    await response.write_eof()
                else:
                    response.force_close()
            turn.finished = True
            return response

    @contextmanager
    def _place_for(self, peer: str) -> Iterator[None]:
        if self._streams[peer] >= STREAMS_PER_PEER:
            raise BusyError(f"{peer} has {STREAMS_PER_PEER} transfers open here already")
        self._streams[peer] += 1
        try:
            yield
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _unless_unreadable(self, key: PackKey, pack: ServedPack, block: int) -> None:
        """Refuse a block that could not be read and still cannot: to ask again is of no use."""
        if (key, block) in self._unreadable:
            try:
                await self._in_thread(pack.read, block, 0, memoryview(bytearray(pack.block_size(block))))
            except UnreadableError as error:
                raise self._blamed(key, block, error) from error
            self._unreadable.discard((key, block))

    def _blamed(self, key: PackKey, block: int, error: UnreadableError) -> DamagedError:
        self._unreadable.add((key, block))
        log.error("%s of %s: %s", PACK_NAME, "/".join(key), error)
        return damaged_at(self._node, key, f"block {block} of {PACK_NAME}")

    async def _stream(
        self, stream: _Stream, key: PackKey, pack: ServedPack, runs: Sequence[Run], until_s: float
    ) -> bool:
        """Send the blocks; return false when the window left no time for all of them."""
        block_s = 0.0
        try:
            for block in blocks_of(runs):
                if not pack.has(block):
                    with stream.resting():
                        left_s = max(0.0, until_s - time.monotonic())
                        await pack.available(block, min(self._timeout_s / 2, left_s))
                began_at_s = time.monotonic()
                if began_at_s + block_s > until_s:
                    return False
                await stream.send(pack, block, until_s)
                block_s = time.monotonic() - began_at_s
        except ConnectionError:
            raise  # the peer went away
        except UnreadableError as error:
            raise _CutShort(self._blamed(key, block, error).message) from error
        except (TedError, OSError) as error:  # no time, or a pack that was cut short
            # the head is out: closing early is the only honest answer left
            raise _CutShort(str(error) or "a block did not come in time") from error
        return True

    async def _json(self, request: web.Request, max_bytes: int) -> Any:
        """Return the body as JSON; it is bounded while it comes, unpacked, and read in a thread when it is large."""
        body = bytearray()
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > max_bytes:
                raise FormatError(f"the request's body is larger than {max_bytes} bytes")
        try:
            return await self._in_thread(json.loads, body) if len(body) > LARGE_BODY_BYTES else json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FormatError("the request's body is not JSON") from error

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


class _CutShort(ConnectionResetError):  # noqa: N818 -- it ends an answer and is never told to the peer
    """This node ends an answer whose head is out."""


def patience_window_s(timeout_s: float) -> float:
    """Return over how long the least rate is judged."""
    return timeout_s / 10


class _Stream:
    """The answer with blocks on its way through the gate."""

    def __init__(self, request: web.Request, response: web.StreamResponse, turn: Turn, patience: Patience, *,
                 alive_every_s: float, executor: Executor) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        transport = request.transport
        tls = transport is not None and transport.get_extra_info("ssl_object") is not None
        self._socket = None if transport is None else transport.get_extra_info("socket")
        self._factor = wire_factor(segment_bytes(self._socket), tls=tls)
        self._rate_bytes_s: int | None = None
        self._response = response
        self._turn = turn
        self._patience = patience
        self._alive_every_s = alive_every_s
        self._granted_bytes = 0
        self._transport = transport if isinstance(transport, asyncio.WriteTransport) else None
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=1)  # 0 would be reached by nothing
        self._tls = transport if isinstance(transport, TlsTransport) else None
        self._is_begun = False
        self._watch = _Watch(self._transport)
        self._unbroken_bytes = 0
        self._queue = Queue(time.monotonic())
        forget_rate(self._socket)
        limit_unsent(self._socket, self._queue.size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()

    async def begin(self, size_bytes: int) -> None:
        """Wait for the first turn.

        Raises:
            BusyError: It takes longer than the other side should wait for a sign of life.
        """
        size_bytes = min(size_bytes, self._turn.piece_bytes)
        if not await self._turn.take(size_bytes * self._factor, self._alive_every_s):
            raise BusyError("others have their turn first", hint="it asks again by itself")
        self._granted_bytes = size_bytes

    @contextmanager
    def resting(self) -> Iterator[None]:
        """There is nothing to send meanwhile."""
        self._turn.rest()
        since_s = self._loop.time()
        yield
        self._queue.rested(self._loop.time() - since_s)

    async def send(self, pack: ServedPack, block: int, until_s: float) -> None:
        """Write a block, piece by piece, each when it may.

        Raises:
            TransferError: Others have their turn, and the reader's window is over for so long that it waits no more.
        """
        start, stop = 0, pack.block_size(block)
        while start < stop:
            size_bytes = min(self._granted_bytes or self._piece_bytes, stop - start)
            if not self._granted_bytes:
                while not await self._turn.take(size_bytes * self._factor, self._alive_every_s):
                    if stop - start > 1:  # a sign of life; the block is never finished by it
                        await self._write(pack, block, start, 1)
                        start += 1
                    if time.monotonic() > until_s + OVER_S:
                        raise TransferError("the window of the send is over, and others have their turn")
                size_bytes = min(size_bytes, stop - start)
            self._granted_bytes = 0
            await self._write(pack, block, start, size_bytes)
            start += size_bytes

    async def _write(self, pack: ServedPack, block: int, start: int, size_bytes: int) -> None:
        """Write a piece; only the time for which the reader lets it wait counts against it."""
        self._fit_buffers()
        fill = partial(pack.read_cached, block)
        at, stop, waited_s = start, start + size_bytes, 0.0
        while at < stop:
            if self._tls is not None and self._is_begun:
                at = self._tls.pour(fill, at, stop)
            self._turn.sent()
            if at < stop:  # the reader is slower, or the disk has it still
                data = memoryview(bytearray(min(READ_BYTES, stop - at)))
                if not fill(at, data):
                    await self._loop.run_in_executor(self._executor, pack.read, block, at, data)
                waited_s += await self._write_and_wait(data)
                at += len(data)
        if self._queue.moved(size_bytes, self._loop.time()) and self._rate_bytes_s is None:
            limit_unsent(self._socket, self._queue.size_bytes)
        if self._watch.has_cut or not self._patience.enough(size_bytes, waited_s):
            raise TransferError("the reader takes less than ted_min_rate")
        await self._let_others(size_bytes)

    async def _write_and_wait(self, data: memoryview) -> float:
        """Write, after the answer's head if that is not out, and return how long the reader let it wait."""
        before_s = self._loop.time()
        self._watch.begins(before_s + self._patience.longest_s(len(data)))
        await self._response.write(data)
        self._watch.ends()
        self._is_begun = True
        return self._loop.time() - before_s

    def _fit_buffers(self) -> None:
        """Follow a new rate, or a changed one.

        A piece at a rate goes into the system's queue at one go: the rest of it would leave beside later pieces.
        """
        if self._turn.rate_bytes_s != self._rate_bytes_s:
            self._rate_bytes_s = self._turn.rate_bytes_s
            fit_send_buffer(self._socket, self._rate_bytes_s)
            at_a_rate_bytes = max(LEAST_QUEUE_BYTES, self._turn.piece_bytes)
            limit_unsent(self._socket, self._queue.size_bytes if self._rate_bytes_s is None else at_a_rate_bytes)

    async def _let_others(self, size_bytes: int) -> None:
        """Give others a turn now and then: a reader that keeps up would leave them none."""
        self._unbroken_bytes += size_bytes
        if self._unbroken_bytes >= TURN_BYTES:
            self._unbroken_bytes = 0
            await asyncio.sleep(0)

    @property
    def _piece_bytes(self) -> int:
        """How much to ask the gate for at a time."""
        if self._rate_bytes_s is None and self._queue.size_bytes > LEAST_QUEUE_BYTES:
            return min(max(self._queue.size_bytes, READ_BYTES), TURN_BYTES)
        return self._turn.piece_bytes


class _Watch:
    """Cuts a connection on which one write takes too long.

    A timer of the event loop for all writes, not one for each: nearly all of them are done at once.
    """

    def __init__(self, transport: asyncio.WriteTransport | None) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._until_s: float | None = None
        self.has_cut = False

    def begins(self, until_s: float) -> None:
        """A write begins that must be done at ``until_s`` of the monotonic clock."""
        self._until_s = until_s
        if self._timer is None:
            self._timer = self._loop.call_at(until_s, self._look)

    def ends(self) -> None:
        """It is done."""
        self._until_s = None

    def close(self) -> None:
        """There are no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._until_s is None:
            return
        if self._loop.time() < self._until_s:
            self._timer = self._loop.call_at(self._until_s, self._look)
        elif self._transport is not None:
            self.has_cut = True
            self._transport.abort()


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


def _every_s(request: web.Request) -> float | None:
    """Return within how many seconds the peer says that it asks again; ``None`` when it does not say.

    Raises:
        FormatError: That is no time.
    """
    said = request.query.get("every")
    if said is None:
        return None
    if not said.isascii() or not said.isdigit() or not 0 < int(said[:9]) <= MAX_EVERY_S:
        raise FormatError(f"every={said!r:.20} is not a time in whole seconds up to {MAX_EVERY_S}")
    return float(said)


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
    place = check_stamp(info["revision"])
    if patch := info.get("patch"):
        if not is_patch_name(patch):
            raise FormatError(f"{patch!r:.60} is not a patch")
        place = f"{place}/{patch}"
    return check_name(info["distributor"]), check_name(info["distribution"]), place


def _wanted(revision: str, asked: Any) -> tuple[PackRef, list[Run]]:
    """Return the checked sizes and runs of a request for blocks."""
    try:
        size, block_bytes = int(asked["bytes"]), int(asked["block_bytes"])
        runs = [(int(first), int(count)) for first, count in asked["runs"][: MAX_RUNS + 1]]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
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


def _for_s(asked: Any) -> float:
    """Return how long the reader wants blocks; infinite when it does not say."""
    for_s = asked.get("for_s", math.inf)
    if isinstance(for_s, bool) or not isinstance(for_s, int | float) or not for_s >= 0:
        raise FormatError("request for blocks with an impossible time")
    return math.inf if for_s > MAX_FOR_S else for_s


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
    except ConnectionError as error:
        transport = request.transport
        if not isinstance(error, _CutShort) and transport is not None and not transport.is_closing():
            raise
        why = f"cut short: {error}" if isinstance(error, _CutShort) else "the peer went away"
        log.info("%s %s: %s", request.method, request.path, why)
        if transport is not None:
            transport.close()
        return web.Response()  # on a closed connection it is written to nobody
