"""``ted types``: the distribution types known here, with their options."""

from __future__ import annotations

from typing import Any

import click

from ted.cli.main import Settings, emit, tabulated
from ted.plugins import Broken, KnownType, installed


@click.command("types")
@click.argument("name", required=False)
@click.pass_obj
def command(settings: Settings, name: str | None) -> None:
    """Show the distribution types known here; with NAME, the options of that one."""
    plugins = installed()
    known = [plugins.type_named(name)] if name else plugins.types()
    rows = [_row(each) for each in known]
    if not name:
        rows += [_broken(each) for each in plugins.broken]
    emit(settings, rows, _options(known[0]) if name else _table(rows))


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
        inner = definitions.get(str(field.get("items", {}).get("$ref", "")).rpartition("/")[2])
        if inner:
            lines += _properties(inner, definitions, indent + "  ")
    return lines


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " | ".join(_type(each) for each in field["anyOf"])
    return str(field.get("type", "mapping"))
