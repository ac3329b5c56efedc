"""Scripts as modules, for tests of what they compute."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from tests.docs.blocks import ROOT


def load_script(name: str) -> ModuleType:
    """Import a file of `scripts/`, whose files import each other by their bare names."""
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
