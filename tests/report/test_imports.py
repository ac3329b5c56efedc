"""Reports are shown by commands that plan and look: they must not wait for torch or plotly."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["autoprune.report", "autoprune.report.html", "autoprune.report.staircases"])
def test_reports_import_neither_torch_nor_plotly(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'plotly'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
