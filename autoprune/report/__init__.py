"""Progress and tables in the terminal, and a self-contained HTML page."""

from autoprune.report.asked import asked_text, score_asked
from autoprune.report.checks import basis_line, check_header, check_row, estimate_table
from autoprune.report.console import ConsoleEvents
from autoprune.report.headline import headlines, noise_lines
from autoprune.report.html import write_report
from autoprune.report.lines import form_lines, layer_lines, prediction_line, score_budget_lines, trust_lines
from autoprune.report.runview import RunView, read_run
from autoprune.report.tables import fixed_table, front_table, layer_table, rung_table, unit_table
from autoprune.report.zeros import zeros_table

__all__ = [
    "ConsoleEvents",
    "RunView",
    "asked_text",
    "basis_line",
    "check_header",
    "check_row",
    "estimate_table",
    "fixed_table",
    "form_lines",
    "front_table",
    "headlines",
    "layer_lines",
    "layer_table",
    "noise_lines",
    "prediction_line",
    "read_run",
    "rung_table",
    "score_asked",
    "score_budget_lines",
    "trust_lines",
    "unit_table",
    "write_report",
    "zeros_table",
]
