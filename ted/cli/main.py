"""The ``ted`` command: global options, one error shape, exit codes of the error tree.

Rules:
 * Data goes to standard output, talk to standard error; ``--json`` prints exactly one document.
 * An expected error prints one line and its hint; a bug prints a traceback.
 * A command's module is imported only when that command is called: a command starts quickly.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ted.errors import TedError

COMMANDS = {
    "agent": "Run this node's agent, or look after one.",
    "build": "Build distributions of this Distributor.",
    "check": "Check an inventory: every problem and every doubt.",
    "extract": "Install the newest revisions that are here.",
    "keys": "Make, list, renew and change a Distributor's keys.",
    "mirror": "Copy revisions to or from a plain repository.",
    "plan": "Show what each line would carry, and when.",
    "purge": "Remove what nobody needs.",
    "realm": "Make the realm's authority; certificates of nodes.",
    "receive": "Ask the parent for what this node should have.",
    "report": "Show what happened, was sent, failed or is kept.",
    "rollback": "Take a distribution back to an earlier revision.",
    "routes": "Show who sends to whom.",
    "send": "Send the newest revisions to their subscribers.",
    "status": "Show what is where.",
    "tree": "Show the tiers, and what each node has.",
    "trust": "Import, export, list and remove Distributors' roots.",
    "types": "Show the distribution types and their options.",
    "verify": "Compare what is here with what was signed.",
}
"""Each command and what the list of commands says of it, so that the list imports none of them."""


@dataclass(frozen=True)
class Settings:
    """What the global options said."""

    inventory: Path | None
    config: Path
    as_json: bool
    verbose: bool

    @property
    def inventory_on_stdin(self) -> bool:
        """Whether the inventory comes by standard input."""
        return str(self.inventory) == "-"


class Commands(click.Group):
    """A group whose list of commands tells each in a whole sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list."""
        rows = [(name, self.told(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def told(self, ctx: click.Context, name: str) -> str:
        """Return the sentence of a command."""
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=_SENTENCE) if command is not None else ""


class _Lazy(Commands):
    """A group whose commands live in ``ted.cli.<name>_cmd`` as ``command``; plugins may bring more."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted({*COMMANDS, *_of_plugins()})

    def told(self, ctx: click.Context, name: str) -> str:
        """Return what the list says, without importing one of ted's own commands."""
        return COMMANDS.get(name) or super().told(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; one that is mistyped is answered with what was probably meant."""
        word = args[0]
        if word and not word.startswith("-") and self.get_command(ctx, word) is None:
            from ted.topology.names import suggestion

            hint = suggestion(word, self.list_commands(ctx), near=0.6)
            ctx.fail(f"No such command {word!r}." + (f" {hint[0].upper()}{hint[1:]}" if hint else ""))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return _of_plugins().get(cmd_name)
        gc.disable()  # what is imported stays: looking through it for garbage is in vain
        try:
            command: click.Command = importlib.import_module(f"ted.cli.{cmd_name}_cmd").command
        finally:
            gc.freeze()
            gc.enable()
        return command


def _of_plugins() -> dict[str, click.Command]:
    from importlib.metadata import entry_points

    if all(found.module.startswith("ted_plugins.") for found in entry_points(group="ted")):
        return {}  # ted's own types bring none
    from ted.plugins import installed

    return installed().commands()


_SENTENCE = 200
_CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TED"}


@click.group(cls=_Lazy, context_settings=_CONTEXT)
@click.option("-i", "--inventory", type=click.Path(path_type=Path), show_envvar=True,
              help="An Ansible inventory, or the JSON of one; -: that JSON on standard input.")
@click.option("--config", type=click.Path(path_type=Path), default=Path("/etc/ted"), show_default=True,
              show_envvar=True, help="This node's configuration directory.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error; tracebacks for errors.")
@click.version_option(package_name="ted")
@click.pass_context
def cli(ctx: click.Context, inventory: Path | None, config: Path, as_json: bool, verbose: bool) -> None:
    """Tiered Electronic Distribution: build, sign, send tier by tier, extract, roll back."""
    ctx.obj = Settings(inventory, config, as_json, verbose)


def emit(settings: Settings, data: Any, text: str) -> None:
    """Print ``data`` as JSON with ``--json``, else ``text``."""
    click.echo(json.dumps(data, indent=1, sort_keys=False) if settings.as_json else text)


WIDTH = 100
"""Columns of a terminal that tables fit."""


def tabulated(rows: Any, headers: Any, below: Sequence[Sequence[str]] | None = None) -> str:
    """Return rows as a table for people; ``below``: for each row, the lines that stand below it."""
    from tabulate import tabulate

    table = tabulate(rows, headers=headers)
    if below is None:
        return table
    head, line, *shown = table.splitlines()
    return "\n".join([head, line, *(text for row, more in zip(shown, below, strict=True) for text in (row, *more))])


def wrapped(said: str) -> list[str]:
    """Return the lines that stand below a row of a table, as wide as a terminal at most."""
    import textwrap

    return textwrap.wrap(said, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


_GLOBAL_FLAGS = {"--json", "--verbose", "-v"}
_GLOBAL_VALUES = {"--inventory", "-i", "--config"}


def hoist(argv: list[str]) -> list[str]:
    """Move global options to the front, so that they may stand anywhere: ``ted status --json``."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _GLOBAL_FLAGS or ("=" in word and word.split("=", 1)[0] in _GLOBAL_VALUES):
            front.append(word)
        elif word in _GLOBAL_VALUES:
            front += [word, *[value for value in (next(words, None),) if value is not None]]
        else:
            rest.append(word)
    return front + rest


def main(argv: list[str] | None = None) -> None:
    """Run the command and end the process with the exit code of the error tree."""
    argv = hoist(sys.argv[1:] if argv is None else argv)
    try:
        cli.main(args=argv, standalone_mode=False, prog_name="ted")
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("ted: interrupted", err=True)
        sys.exit(130)
    except TedError as error:
        if "--verbose" in argv or "-v" in argv:
            import traceback

            traceback.print_exc()
        if "--json" in argv:
            click.echo(json.dumps({"error": error.to_dict(), **error.data}))
        click.echo(f"ted: {error.message}" + (f"\n     {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_code)
