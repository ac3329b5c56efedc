"""Accuracy of a table and the result of its check, as lines of text."""

from __future__ import annotations

import numpy as np

from autoprune.latencies import TimeUnit
from autoprune.latency.fitting import HeldOut
from autoprune.latency.table import FIT, SCAN, LatencyTable
from autoprune.profiling.table_check import TableCheck
from autoprune.structure import Structure


def accuracy_lines(table: LatencyTable) -> list[str]:
    """How a table was made and how well it predicts."""
    counts = table.counts
    target, unit = table.target, TimeUnit.of([table.dense_ms])
    lines = [
        f"{target['name']}, {target['threads']} thread(s), batch {target['batch']}, {target['precision']}: dense "
        f"{unit.shown(table.dense_ms)}, of which {unit.shown(table.remainder_ms)} are fixed",
        f"{len(table.entries)} geometries from {counts.get(SCAN, 0)} scanned and {counts.get(FIT, 0)} sampled policies "
        f"in {table.seconds:.0f} s; the dense model moved by at most {table.drift_percent:.1f} % within a block "
        f"({table.repeated_blocks} blocks repeated)",
        errors_line(table.held_out),
    ]
    if table.refits:
        lines.append(f"fitted again {table.refits} time(s) with measured candidates")
    return lines + list(table.notes)


def errors_line(errors: HeldOut) -> str:
    """Errors on held-out policies in one line."""
    return (
        f"on {errors.policies} held-out policies: mean error {errors.mape_percent:.1f} %, largest "
        f"{errors.max_percent:.1f} %, bias {errors.bias_percent:+.1f} %, Spearman {errors.spearman:.3f}, "
        f"re-measure noise {errors.noise_percent:.1f} %; {errors.within_2sd:.0%} within two predicted standard "
        "deviations"
    )


def check_lines(check: TableCheck) -> list[str]:
    """Whether a table still holds."""
    change, unit = check.dense_ms_now / check.dense_ms_before - 1, TimeUnit.of([check.dense_ms_now])
    return [
        f"the dense model takes {unit.shown(check.dense_ms_now)} now, {change:+.1%} against the table",
        f"then: {errors_line(check.before)}",
        f"now:  {errors_line(check.now)}",
        "the table still holds" if check.holds else "the table no longer holds: run `autoprune profile` again",
    ]


def latency_shares(table: LatencyTable, structure: Structure) -> dict[str, float]:
    """Share of the predicted latency that goes when each unit alone has the smallest width that the table knows.

    Width 0 is not one of those. `LatencyError` when the table was made for another structure.
    """
    full = np.array([unit.width for unit in structure.units])
    widths = np.repeat(full[None], 1 + len(full), axis=0)
    for place, unit in enumerate(structure.units):
        widths[1 + place, place] = min(width for width in table.known[unit.name] if width > 0)
    dense_ms, *cut_ms = table.predictor(structure).predict(widths)
    return {unit.name: float(1 - ms / dense_ms) for unit, ms in zip(structure.units, cut_ms, strict=True)}
