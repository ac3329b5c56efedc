"""Commands that only read a run start without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import autoprune

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "ray", "pandas", "scipy", "plotly", "optuna", "sqlalchemy")
LOADED = "import sys, atexit; atexit.register(lambda: print('\\nLOADED', *sys.modules)); sys.argv[1:] = {arguments!r}; "

LIGHT = {
    "--help": set(),
    "spaces": set(),
    "front": set(),
    "pick": set(),
    "report": {"plotly"},
    "status": {"optuna", "sqlalchemy"},
}
"""Heavy libraries that each command needs."""


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_load_no_heavy_library(command: str, finished: autoprune.Run) -> None:
    needs_run = command not in ("--help", "spaces")
    arguments = [
        command,
        *([str(finished.folder.path)] if needs_run else []),
        *(["--knee"] if command == "pick" else []),
    ]
    code = LOADED.format(arguments=arguments) + "from autoprune.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("\nLOADED ")[2].split()
    assert {name for name in HEAVY if name in loaded} <= LIGHT[command]


def test_the_package_itself_loads_no_heavy_library() -> None:
    code = "import sys, autoprune; dir(autoprune); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pydantic", *HEAVY} & set(loaded)
