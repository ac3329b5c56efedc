"""Commands that only read a run start without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autoprune

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "ray", "pandas", "scipy", "plotly", "optuna", "sqlalchemy")
CODE = """
import atexit, sys
atexit.register(lambda: print("\\nLOADED", *sys.modules))
sys.argv[1:] = {arguments!r}
from autoprune.cli.main import main
main()
"""

NEEDED: dict[str, set[str]] = {
    "--help": set(),
    "spaces": set(),
    "front RUN": set(),
    "pick RUN --knee": set(),
    "export RUN --policy DIGEST --out MODEL": set(),
    "report RUN --out PAGE": set(),
    "status RUN": set(),
}
"""Heavy libraries that each command needs."""


@pytest.mark.parametrize("command", NEEDED)
def test_light_commands_load_no_heavy_library(command: str, finished: autoprune.Run, tmp_path: Path) -> None:
    places = {"RUN": str(finished.folder.path), "PAGE": str(tmp_path / "page.html")}
    places |= {"MODEL": str(tmp_path / "model.onnx"), "DIGEST": finished.models[0].digest}
    code = CODE.format(arguments=[places.get(word, word) for word in command.split()])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("\nLOADED ")[2].split()
    assert {name for name in HEAVY if name in loaded} <= NEEDED[command]


def test_the_package_itself_loads_no_heavy_library() -> None:
    code = "import sys, autoprune; dir(autoprune); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pydantic", *HEAVY} & set(loaded)
