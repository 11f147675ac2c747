# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""What a send's progress says, and how to say it to a person. Decides only: no connection, no clock."""

from __future__ import annotations

import json

# States in which a node holds the whole revision, whatever it does with it.
HELD = ("received", "extracting", "extracted", "rolled_back", "skipped")
# States in which an error is no end: it is tried again.
WAITING = ("pending", "receiving")
# Begins the error of a receiver behind one that failed.
NOT_REACHED = "not reached: "
# Begins the error of a receiver that could not be asked, and had the revision when last heard of.
NOT_ASKED = "not asked: "
# What a check says of a receiver that lacks the revision.
FORETOLD = "would be sent"
# What a failure shows of a send, beside who lacks it and why.
BRIEF = ("send", "distributor", "distribution", "channel", "revision", "changed", "bytes", "unasked")
UNITS = ("B", "kB", "MB", "GB", "TB")


def documents(text):
    """Return every JSON document in ``text``, one after another, up to what is none."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at >= len(text):
            return found
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return found
        found.append(value)


def total(value):
    """Return a number, or the sum of a mapping's numbers."""
    if isinstance(value, dict):
        return sum(total(item) for item in value.values())
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def incomplete(send):
    """Return the receivers that do not hold the revision, with their state; relays that are none are not asked."""
    states, named = send.get("states") or {}, send.get("incomplete")
    lacking = [host for host, state in states.items() if state not in HELD] if named is None else named
    return {host: states.get(host, "unknown") for host in lacking}


def all_incomplete(sends):
    """Return what is missing, by distribution."""
    missing = {}
    for send in sends:
        lacking = incomplete(send)
        if lacking:
            missing.setdefault(send.get("distribution"), {}).update(lacking)
    return missing


def reasons(sends):
    """Return who lacks what and why: each cause once, for all distributions that the same receivers lack for it."""
    found = {}
    for send in sends:
        lacking, errors = incomplete(send), send.get("errors") or {}
        if lacking:
            causes, known = {}, set(errors.values())
            for host in sorted(lacking):
                causes.setdefault(first_cause(errors.get(host) or lacking[host], known), []).append(host)
            who = "; nor by ".join("%s (%s)" % (", ".join(causes[cause]), cause) for cause in causes)
            found.setdefault(who, []).append(str(send.get("distribution")))
    return "; ".join(
        "%s %s not received by %s" % (" and ".join(names), "was" if len(names) == 1 else "were", who)
        for who, names in found.items()
    )


def first_cause(text, errors):
    """Return the error of a receiver, or what it ends with: that of the one on the way to it."""
    behind = text.startswith(NOT_REACHED)
    return min((error for error in errors if behind and text.endswith(error)), key=len, default=text)


def unasked(sends, most=5):
    """Return a sentence for each cause why receivers could not be asked that had the revision when last heard of."""
    causes = {}
    for send in sends:
        errors = {host: text.removeprefix(NOT_ASKED) for host, text in (send.get("errors") or {}).items()}
        known = set(errors.values())
        for host in send.get("unasked") or []:
            causes.setdefault(first_cause(errors.get(host) or "no answer", known), set()).add(host)
    lines = [
        "%s could not be asked, and had the revision when last heard of: %s" % (some(causes[cause]), cause)
        for cause in sorted(causes)
    ]
    return lines[:most] + (["and %d more causes" % (len(lines) - most)] if len(lines) > most else [])


def whats_next(sends):
    """Return what to do about receivers that lack it: mend what ended without them, follow what still goes on."""
    lacking = [(send, set(incomplete(send).values())) for send in sends]
    ended = [send for send, states in lacking if states and (send.get("done") or states - set(WAITING))]
    going = [send for send, states in lacking if states & set(WAITING) and not send.get("done")]
    advice = ["send again when that is mended: what came is kept"] if ended else []
    if going:
        looks = " ".join("--watch %s" % send.get("send") for send in going)
        advice.append("what waits goes on by itself: `ted send %s` on the Distributor tells how far it is" % looks)
    return "; ".join(advice)


def brief(send):
    """Return what a failure shows of a send: what it is and who lacks it, not every link."""
    lacking, errors = incomplete(send), send.get("errors") or {}
    said = {key: send[key] for key in BRIEF if key in send}
    return dict(said, incomplete=sorted(lacking), errors={host: errors[host] for host in lacking if host in errors})


def amount(size):
    """Return bytes as a person reads them."""
    number = float(size)
    for unit in UNITS:
        if number < 1000 or unit == UNITS[-1]:
            return "%d %s" % (number, unit) if unit == "B" else "%.1f %s" % (number, unit)
        number /= 1000
    return ""


def clock(seconds):
    """Return a duration as a person reads it."""
    seconds = int(seconds)
    if seconds >= 3600:
        return "%d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)
    return "%d:%02d" % (seconds // 60, seconds % 60)


def counts(sends):
    """Return ``(holding, receivers, bytes done, bytes in all)`` over some sends."""
    receivers = sum(len(send.get("states") or {}) for send in sends)
    lacking = sum(len(incomplete(send)) for send in sends)
    done = sum(total(send.get("bytes")) for send in sends)
    wanted = sum(total(send.get("bytes_total")) for send in sends)
    return receivers - lacking, receivers, done, wanted


def line(sends, elapsed_s, moved_s):
    """Return one line: who has it, how much is over, how fast, how long still.

    ``moved_s`` is when, in seconds from the beginning, the bytes were last others: nodes tell of theirs now and then.
    """
    holding, receivers, done, wanted = counts(sends)
    names = sorted({str(send.get("distribution")) for send in sends})
    what = ", ".join(names[:3]) + (" and %d more" % (len(names) - 3) if len(names) > 3 else "")
    parts = ["%d of %d have it" % (holding, receivers)]
    if wanted and (done < wanted or holding == receivers):  # else those who lack it have not begun: no end is in sight
        parts.append("%d %% of %s" % (100 * done // wanted, amount(wanted)))
    rate = done / moved_s if moved_s > 0 else 0
    if rate and done < wanted:
        parts += ["%s/s" % amount(rate), "%s left" % clock(max((wanted - done) / rate - (elapsed_s - moved_s), 0))]
    elif elapsed_s >= 1:
        parts.append("after %s" % clock(elapsed_s))
    who = ", ".join(sorted({str(send["distributor"]) for send in sends if send.get("distributor")}))
    return "%s%s: %s" % (who + " sends " if who else "", what, ", ".join(parts))


def obstacles(sends):
    """Return who is tried again and again, and why: ``{(host, cause): {hosts behind it}}``."""
    found = {}
    for send in sends:
        errors, states = send.get("errors") or {}, send.get("states") or {}
        waiting = [host for host in errors if states.get(host) in WAITING]
        senders = {edge_parts(edge)[1]: edge_parts(edge)[0] for edge in send.get("edges") or []} if waiting else {}
        for host in waiting:
            first = nearest_to_sender(host, senders, set(waiting))
            behind = found.setdefault((first, errors[first]), set())
            if host != first:
                behind.add(host)
    return found


def nearest_to_sender(host, senders, waiting):
    """Return the first on the way to ``host`` that waits: what lies behind it waits for it."""
    first, seen = host, set()
    while host in senders and host not in seen:
        seen.add(host)
        host = senders[host]
        if host in waiting:
            first = host
    return first


def obstacle_lines(sends, told, most=5):
    """Return a line for each obstacle that is not in the set ``told`` yet, at most ``most``, and put them all there."""
    found = obstacles(sends)
    new = sorted(set(found) - told)
    told.update(new)
    lines = []
    for host, cause in new[:most]:
        behind = "; behind it: %s" % some(found[host, cause]) if found[host, cause] else ""
        lines.append("waiting for %s%s" % (shortened(host, cause), behind))
    if len(new) > most:
        lines.append("waiting for %d more: `ted report events` on the Distributor" % (len(new) - most))
    return lines


def shortened(host, cause):
    """Return a host and its cause, in which it is mostly named first."""
    return cause if cause.startswith((host + " ", host + ":")) else "%s: %s" % (host, cause)


def some(names, most=4):
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(sorted(names)[:most])
    return shown + (" and %d more" % (len(names) - most) if len(names) > most else "")


def landmark(sends):
    """Return what must change for a new line to be worth printing: who has it, who failed, every tenth."""
    holding, receivers, done, wanted = counts(sends)
    failed = sum(1 for send in sends for state in incomplete(send).values() if state == "failed")
    return holding, receivers, failed, 10 * done // wanted if wanted else 0


def tier_rows(send):
    """Return ``(depth, sender, receiver, bytes, state)`` for each link, every receiver below its sender."""
    states = send.get("states") or {}
    children, receivers = {}, set()
    for edge in send.get("edges") or []:
        sender, receiver, size = edge_parts(edge)
        children.setdefault(sender, []).append((receiver, size))
        receivers.add(receiver)
    rows = []
    pending = [(root, 0) for root in sorted(set(children) - receivers, reverse=True)]
    seen = set()
    while pending:
        sender, depth = pending.pop()
        if depth:
            rows.append((depth,) + sender)
            sender = sender[1]
        if sender in seen:
            continue
        seen.add(sender)
        for receiver, size in sorted(children.get(sender, []), reverse=True):
            pending.append(((sender, receiver, size, states.get(receiver, "relay")), depth + 1))
    return rows


def edge_parts(edge):
    """Return an edge's sender, receiver and bytes, from a mapping or a pair."""
    if isinstance(edge, dict):
        return edge.get("sender"), edge.get("receiver"), edge.get("bytes") or 0
    return edge[0], edge[1], 0


def table(send, most=60):
    """Return the lines of one send's table of tiers."""
    if moves_nothing(send):
        return [title(send, [])]
    rows, foretold = tier_rows(send), not send.get("send")  # what is only looked at has no identity
    head = ("tier", "sender", "receiver", "bytes", "state")
    cells = [
        (str(depth), sender, "  " * (depth - 1) + str(receiver), amount(size), FORETOLD if foretold and size else state)
        for depth, sender, receiver, size, state in rows[:most]
    ]
    widths = [max(len(str(row[column])) for row in [head] + cells) for column in range(len(head))]
    lines = [title(send, rows), layout(head, widths), layout(["-" * width for width in widths], widths)]
    lines += [layout(row, widths) for row in cells]
    if len(rows) > most:
        lines.append("... and %d more" % (len(rows) - most))
    return lines


def moves_nothing(send):
    """Say whether a send found, or a check foretold, that every receiver holds the revision."""
    return not (send.get("changed") or total(send.get("bytes")) or incomplete(send))


def title(send, rows):
    """Return what is sent and how much of it; of a revision that is still to be built only the most is known."""
    where = "%s %s on %s: " % (send.get("distribution"), send.get("revision") or "a new revision", send.get("channel"))
    if moves_nothing(send):
        silent = len(send.get("unasked") or [])
        return where + "nothing to send, everybody has it" + (" (%d could not be asked)" % silent if silent else "")
    if not send.get("revision"):
        return where + "at most %s over each link" % amount(max([row[3] for row in rows] or [0]))
    over = amount(send.get("bytes") or sum(row[3] for row in rows))
    return where + "%s over %d link%s" % (over, len(rows), "" if len(rows) == 1 else "s")


def layout(row, widths):
    """Return one row; numbers (bytes) to the right."""
    parts = [
        str(cell).rjust(width) if column == 3 else str(cell).ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths))
    ]
    return "  ".join(parts).rstrip()


def status_table(rows):
    """Return the lines of a table of ``ted status`` rows."""
    head = ("node", "distribution", "revision", "state", "error")
    cells = [[str(row.get(key) if row.get(key) is not None else "") for key in head] for row in rows]
    widths = [max(len(row[column]) for row in [list(head)] + cells) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return [plain_layout(row, widths) for row in [head, rule] + cells]


def plain_layout(row, widths):
    """Return one row, all columns to the left."""
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
