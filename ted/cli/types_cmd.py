"""``ted types``: the distribution types known here, with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ted.cli.main import Settings, emit, tabulated
from ted.errors import UsageError
from ted.plugins import Broken, KnownType, installed


@click.command("types")
@click.argument("name", required=False, metavar="[NAME | new NAME]")
@click.argument("new_name", required=False, metavar="")
@click.option("--directory", type=click.Path(path_type=Path), default=Path(),
              help="With new: where the package's directory is made.  [default: here]")  # fmt: skip
@click.pass_obj
def command(settings: Settings, name: str | None, new_name: str | None, directory: Path) -> None:
    """Show the distribution types known here; with NAME, the options of that one.

    `ted types new NAME` writes a package of a type of your own to begin with: its code, its tests, how to install it.
    """
    if name == "new":
        _write(settings, new_name, directory)
        return
    if new_name is not None:
        raise UsageError(f"one type at a time: {name} or {new_name}", hint="`ted types new NAME` writes a new one")
    plugins = installed()
    known = [plugins.type_named(name)] if name else plugins.types()
    rows = [_row(each) for each in known]
    if not name:
        rows += [_broken(each) for each in plugins.broken]
    emit(settings, rows, _options(known[0]) if name else _table(rows))


def _write(settings: Settings, name: str | None, directory: Path) -> None:
    """Write a new package and say what to do with it."""
    from ted.cli.new_type import write_package

    if name is None:
        raise UsageError("a new type needs a name", hint="ted types new NAME")
    taken = {known.info.name: known.package for known in installed().types()}
    if name in taken:
        raise UsageError(f"there is a type {name!r} already, of {taken[name]}", hint="give the new one another name")
    files = [str(path) for path in write_package(name, directory)]
    root = str(Path(files[0]).parent)
    text = "\n".join(files) + f"\n\ncd {root} && python -m pip install -e '.[test]' && pytest"
    emit(settings, {"changed": True, "directory": root, "files": files}, text)


def _row(known: KnownType) -> dict[str, Any]:
    reason = known.info.available()
    return {
        "name": known.info.name, "description": known.info.description,
        "options": known.info.options.model_json_schema(), "available": reason is None, "reason": reason,
        "plugin": known.package,
    }  # fmt: skip


def _broken(broken: Broken) -> dict[str, Any]:
    return {
        "name": broken.name, "description": "cannot be used", "options": {}, "available": False,
        "reason": broken.cause, "plugin": broken.package,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    table = [[row["name"], row["description"], row["reason"] or "yes", row["plugin"]] for row in rows]
    return tabulated(table, headers=["type", "description", "available", "package"])


def _options(known: KnownType) -> str:
    schema = known.info.options.model_json_schema()
    lines = [f"{known.info.name}: {known.info.description}", ""]
    lines += _properties(schema, schema.get("$defs", {}), "")
    return "\n".join(lines)


def _properties(schema: dict[str, Any], definitions: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, field in schema.get("properties", {}).items():
        words = [_type(field)]
        words += ["required"] if name in schema.get("required", []) else [f"default {field.get('default')!r}"]
        lines.append(f"{indent}{name} ({', '.join(words)}): {field.get('description', '')}")
        items = field.get("items", {})
        for each in (items, *items.get("anyOf", ())):
            inner = definitions.get(str(each.get("$ref", "")).rpartition("/")[2])
            lines += _properties(inner, definitions, indent + "  ") if inner else []
    return lines


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " | ".join(_type(each) for each in field["anyOf"])
    return str(field.get("type", "mapping"))
