"""The table of the zeros in a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def zeros_table(document: Mapping[str, Any]) -> Table:
    """Return a row for each weight of a sparse model: its shape, its zeros, and filters and inputs of zeros alone."""
    masked = [document["schedule"], document["pattern"]] if document["pattern"] != "none" else []
    table = Table(title=f"Zeros after {', '.join([*masked, *document['terms']])}", title_justify="left")
    table.add_column("weight")
    for title in ("shape", "zeros", "share", "filters of zeros", "inputs of zeros"):
        table.add_column(title, justify="right", no_wrap=True)
    for weight in document["weights"]:
        counts = (f"{weight[key]:,}" for key in ("zero_filters", "zero_inputs"))
        table.add_row(
            weight["name"], weight["shape"], f"{weight['zeros']:,}", f"{100 * weight['share']:.1f} %", *counts
        )
    return table
