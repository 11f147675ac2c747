"""What a send says of itself: one shape for the command, the module and the progress line."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ted.records.states import FINAL, HOLDS, NOT_ASKED, State, now_text


def send_result(send: dict[str, Any]) -> dict[str, Any]:
    """Return the public shape of a journal's send.

    Returns:
        ``{"send", "distributor", "distribution", "channel", "revision", "changed", "done", "bytes",
        "bytes_total", "edges": [{"sender", "receiver", "bytes", "bytes_total", "state"}],
        "states": {host: state}, "errors": {host: text}, "incomplete": [targets without it],
        "unasked": [targets that could not be asked, and had it when last heard of], "duration_s"}``
    """
    order = {name: number for number, name in enumerate(_senders_first(send["tree"]))}
    deliveries = sorted(send["deliveries"], key=lambda row: order.get(row["node"], len(order)))
    done = send["ended_at"] is not None or all(_is_final(row) for row in deliveries)
    ended_at = send["ended_at"] or now_text()
    started, ended = datetime.fromisoformat(send["started_at"]), datetime.fromisoformat(ended_at)
    return {
        "send": send["send"],
        "distributor": send["distributor"],
        "distribution": send["distribution"],
        "channel": send["channel"],
        "revision": send["revision"],
        "changed": any(row["state"] in HOLDS and not row["had"] for row in deliveries),
        "done": done,
        "bytes": sum(row["bytes_done"] for row in deliveries),
        "bytes_total": sum(row["bytes_total"] for row in deliveries),
        "edges": [_edge(row) for row in deliveries],
        "states": {row["node"]: str(row["state"]) for row in deliveries},
        "errors": {row["node"]: row["error"] for row in deliveries if row["error"]},
        "incomplete": [row["node"] for row in deliveries if row["target"] and row["state"] not in HOLDS],
        "unasked": [row["node"] for row in deliveries
                    if row["target"] and row["state"] in HOLDS and (row["error"] or "").startswith(NOT_ASKED)],
        "duration_s": round((ended - started).total_seconds(), 3),
    }


def _senders_first(tree: list[Any]) -> list[str]:
    """Return the names in an encoded tree of hops, tier by tier."""
    names: list[str] = []
    level = [tree] if tree else []
    while level:
        names += [hop[0] for hop in level]
        level = [child for hop in level for child in hop[4]]
    return names


def _edge(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "sender": row["sender"], "receiver": row["node"], "bytes": row["bytes_done"],
        "bytes_total": row["bytes_total"], "state": str(row["state"]), "target": bool(row["target"]),
    }  # fmt: skip


def _is_final(row: dict[str, Any]) -> bool:
    return row["state"] in FINAL or row["state"] == State.EXTRACTING
