"""Tables that lose nothing: as wide as they are where nothing limits them, row by row where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from autoprune.cli.options import out
from autoprune.printable import printable

_SCHEMA = 1

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def show_table(table: Table, console: Console = out) -> None:
    """Print a table without cutting anything off; it is changed for that.

    Text folds where a terminal is narrow. Where even numbers and words do not fit beside each other, every row becomes
    lines of `column value`.
    """
    for column in table.columns:
        column.overflow = "fold"
        column._cells = [_shown(cell) for cell in column._cells]
        column.no_wrap = column.no_wrap or column.justify == "right"
    if Measurement.get(console, console.options.update(width=10_000), table).minimum <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(Text(str(table.title), style="bold"))
    cells = [list(column.cells) for column in table.columns]
    titles = [str(column.header) for column in table.columns]
    for number in range(table.row_count):
        first, *others = [_plain(column[number]) for column in cells]
        pairs = [f"{title} {cell}".strip() for title, cell in zip(titles[1:], others, strict=True) if cell]
        console.print(Text(first, style="bold"), soft_wrap=True)
        console.print(
            *_folded(", ".join(pairs), console.width), sep="\n", soft_wrap=True, markup=False, highlight=False
        )


def show_json(value: Mapping[str, Any]) -> None:
    """Print a JSON document; its `schema` changes when a key changes its meaning or goes."""
    print(json.dumps({"schema": _SCHEMA} | dict(value), indent=1))


def _shown(cell: Any) -> Any:
    """Return a cell without characters that steer a terminal."""
    if isinstance(cell, str):
        return printable(cell)
    return Text(printable(cell.plain), style=cell.style) if isinstance(cell, Text) and "\x1b" in cell.plain else cell


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _folded(text: str, width: int) -> list[str]:
    """Return indented lines of at most `width`, broken between values; one that is longer has a line of its own."""
    lines = [" "]
    for part in text.split(", "):
        begun = lines[-1] != " "
        if begun and len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += ","
            lines.append(" ")
            begun = False
        lines[-1] += f"{',' if begun else ''} {part}"
    return lines
