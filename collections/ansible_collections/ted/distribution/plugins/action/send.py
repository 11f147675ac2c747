# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Start a send on the Distributor, then look at its progress until it is done.

Rules:
 * One module run starts it. Each look is one plain command over the same connection, never a module. It waits there,
   so the end is seen at once.
 * Nothing waits for ever: every look has a limit, the whole wait has one, and a lost connection is tried a few times.
   The send itself belongs to the agents and goes on whatever happens here.
 * Check mode starts nothing and looks at nothing.
 * A receiver that does not hold the revision in the end fails the task, unless allow_incomplete. One that cannot be
   asked holds what it said to hold.
"""

from __future__ import annotations

import contextvars
import os
import shlex
import threading
import time

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.ted.distribution.plugins.plugin_utils.progress import (
    all_incomplete,
    brief,
    counts,
    documents,
    landmark,
    line,
    obstacle_lines,
    reasons,
    unasked,
    whats_next,
)

display = Display()

MODULE = "ted.distribution.send"
FIRST_WAIT_S = 0.5
WAIT_GROWTH = 2.0
WATCHED_INTERVAL_S = 5
UNWATCHED_INTERVAL_S = 20
LOOK_LIMIT_S = 60
LOST_LIMIT = 5
AT_ONCE = 20
ALLOWED = "-e ted_allow_incomplete=true (of a task: allow_incomplete) does not fail for that"


class LookFailed(Exception):
    """One look at the progress brought nothing; the next may."""


class ActionModule(ActionBase):
    """Start, then look."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return the module's result, brought up to date until every receiver has it or the time is over."""
        result = super(ActionModule, self).run(tmp, task_vars)
        result.update(self._execute_module(module_name=MODULE, task_vars=task_vars))
        if result.get("failed") or result.get("skipped"):
            return result
        sends = result.get("sends") or []
        options = result.get("invocation", {}).get("module_args", {})
        options = dict(options, **self._task.args)
        following = boolean(options.get("wait", True), strict=False)
        if following and not self._task.check_mode:
            sends, trouble = self._follow(result, sends, options)
            result["sends"] = sends
            result["changed"] = any(send.get("changed") for send in sends)
            if trouble:
                result["warnings"] = result.get("warnings", []) + [trouble]
        elif not self._task.check_mode:
            result["changed"] = any(not send.get("done") for send in sends)
        return self._conclude(result, sends, options, following and not self._task.check_mode)

    def _conclude(self, result, sends, options, followed):
        """Add the sums, and fail if somebody lacks it."""
        result["bytes"] = sum(int(send.get("bytes") or 0) for send in sends)
        result["incomplete"] = all_incomplete(sends) if followed else {}
        if followed and (warnings := unasked(sends)):
            result["warnings"] = result.get("warnings", []) + warnings
        if result["incomplete"] and not boolean(options.get("allow_incomplete", False), strict=False):
            result["failed"] = True
            result["msg"] = "; ".join((reasons(sends), whats_next(sends), ALLOWED))
            result["sends"] = [brief(send) for send in sends]
            # Ansible shows a failure whole, but this part of it only from -vvv on: the table of tiers is made of it.
            result.setdefault("invocation", {})["sends"] = sends
        return result

    def _follow(self, result, sends, options):
        """Look until all is done; return the newest news and what went wrong, if anything."""
        news = {str(send.get("send")): send for send in sends}
        live = [name for name, send in news.items() if not send.get("done")]
        began, wait_s, lost, shown, told = time.monotonic(), FIRST_WAIT_S, 0, None, set()
        known, moved_s = 0, 0.0
        deadline = began + int(options.get("timeout") or 3600)
        usual_s = WATCHED_INTERVAL_S if on_terminal() else UNWATCHED_INTERVAL_S
        longest = max(float(options.get("interval") or usual_s), FIRST_WAIT_S)
        trouble = None
        while live:
            looked = time.monotonic()
            try:
                for send in self._look(result, live, min(wait_s, max(deadline - looked, 0))):
                    news[str(send.get("send"))] = send
                lost = 0
            except LookFailed as error:
                lost += 1
                if lost >= LOST_LIMIT:
                    trouble = "the progress could not be read %d times, the last time: %s" % (lost, error)
                    break
                self._forget_connection()
            live = [name for name in live if not news[name].get("done")]
            self._show_obstacles(list(news.values()), told)
            elapsed_s = time.monotonic() - began
            if (done := counts(news.values())[2]) != known:
                known, moved_s = done, elapsed_s
            shown = self._show(list(news.values()), elapsed_s, moved_s, shown)
            if time.monotonic() >= deadline:
                trouble = "the time is over; the send goes on without this play" if live else None
                break
            if live:  # a look waits itself; one that failed, or an older ted, did not
                least_s = wait_s if lost else FIRST_WAIT_S
                time.sleep(min(max(looked + least_s - time.monotonic(), 0), max(deadline - time.monotonic(), 0)))
                wait_s = min(wait_s * WAIT_GROWTH, longest)
        self._show_end(shown)
        return list(news.values()), trouble

    def _look(self, result, names, wait_s):
        """Return the news of the sends ``names``, after ``wait_s`` or as soon as all of them are done."""
        prefix = [result["executable"], "--config", result["config"], "--json", "send"]
        ends = time.monotonic() + wait_s
        news = []
        for first in range(0, len(names), AT_ONCE):
            part = names[first : first + AT_ONCE]
            left_s = max(ends - time.monotonic(), 0)
            words = prefix + ["--timeout", "%.1f" % left_s] + [word for name in part for word in ("--watch", name)]
            said = self._bounded(" ".join(shlex.quote(str(word)) for word in words), LOOK_LIMIT_S + left_s)
            found = documents(said.get("stdout") or "")
            if not found:
                raise LookFailed((said.get("stderr") or said.get("stdout") or "no answer").strip()[-300:])
            for document in found:
                if "error" in document:
                    raise LookFailed(str(document["error"].get("message")))
                news += self._sends_of(document)
        return news

    @staticmethod
    def _sends_of(document):
        """Return the sends of one answer; ``done`` may stand beside them or in them."""
        sends = document.get("sends", [document])
        return [dict(send, done=send.get("done", document.get("done", False))) for send in sends]

    def _bounded(self, command, limit_s):
        """Run a command over the connection, but wait no longer than ``limit_s``."""
        answer = {}

        def look():
            try:
                answer["said"] = self._low_level_execute_command(command, sudoable=True)
            except (AnsibleConnectionFailure, AnsibleError, OSError) as error:
                answer["error"] = error

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(look,), daemon=True)
        thread.start()
        thread.join(limit_s)
        if "said" not in answer:
            raise LookFailed(str(answer.get("error") or "no answer in %d s" % limit_s))
        return answer["said"]

    def _forget_connection(self):
        """Let the next look make a new connection; a dead one answers nothing for minutes."""
        try:
            self._connection.reset()
        except Exception as error:  # a connection that cannot be reset is as good as lost
            display.vvv("send: the connection could not be reset: %s" % error)

    @staticmethod
    def _show(sends, elapsed_s, moved_s, shown):
        """Print a line when something happened; on a terminal, redraw one line at each look. Return what was shown."""
        now, words = landmark(sends), "  " + line(sends, elapsed_s, moved_s)
        if on_terminal():
            display.display("\r\x1b[K" + words, newline=False)
        elif shown is None or now != shown[0]:
            display.display(words)
        return now, words

    @staticmethod
    def _show_obstacles(sends, told):
        """Print whom a send waits for and why, each once: the line that is redrawn goes on below."""
        for words in obstacle_lines(sends, told):
            display.display(("\r\x1b[K" if on_terminal() else "") + "  " + words)

    @staticmethod
    def _show_end(shown):
        """Let the last line of a terminal stay."""
        if shown is not None and on_terminal():
            display.display("")


def on_terminal():
    """Say whether a person watches. A worker's own output is no terminal; that of the process it serves may be."""
    if os.isatty(1):
        return True
    try:
        return os.readlink("/proc/%d/fd/1" % os.getppid()).startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
