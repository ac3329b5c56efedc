"""Other pruning tools on the same dense weights, recipe and clock: Torch-Pruning 1.6.1 and ModelOpt's FastNAS.

    python scripts/benchmarks/peers.py --task fashion-mnist --model resnet20 --dense dense.safetensors \\
        --budget 50% --budget 33% --points 0 2000 10000 50000 --seeds 0 --out results.csv

Each tool gets an environment of its own, with this checkout of autoprune in it, so that task, export, timing and
fine-tuning are the very same functions (without comparing layers: a peer does not say which channels it kept). The
first run DOWNLOADS the tools and PyTorch into `--environments`; later ones use what is there. A peer prunes to a share
of what it counts; the share with the least pruned whose *measured* latency (ONNX Runtime on the CPU, 1 thread, batch 1)
fits the budget is taken. Its test score after every number of sample passes in `--points` is appended to a CSV file
(`curves.Row` explains the columns). Run it again to go on: the shares that meet the budgets are in the folder beside
that file.

With `--int8`, ONNX Runtime's static quantization follows the pruning: files in int8 meet the budgets and are scored.

Search passes: the Taylor scores' gradient examples count 1 each; FastNAS's scores, and the batch-norm recalibration
before each step, 1/3 per example, as if all its candidates were as large as the dense model; latency measurements
count nothing. The budgets of one call share a search, and its passes are divided among them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from peer_methods import METHODS
from peer_worker import Order

ROOT = Path(__file__).resolve().parents[2]
TOOLS: Mapping[str, tuple[str, ...]] = {
    "tp": ("torch-pruning==1.6.1",),
    # ModelOpt 0.47 imports huggingface_hub without requiring it.
    "fastnas": ("nvidia-modelopt==0.47.0", "torchprofile==0.0.4", "requests", "huggingface_hub"),
}
"""Packages to install for the methods whose names begin with the key."""


def main() -> None:
    given = parse()
    for method in given.methods:
        order = Order(
            method=method,
            task=given.task,
            model=given.model,
            data_dir=given.data_dir,
            dense=str(given.dense),
            budgets=given.budget,
            points=given.points,
            seeds=given.seeds,
            out=str(given.out),
            int8=given.int8,
        )
        if order.finished:
            print(f"{method}: nothing to do, {given.out} has all its rows", flush=True)
            continue
        try:
            work(environment(given.environments, method.partition("-")[0]), order)
        except subprocess.CalledProcessError as error:
            print(f"{method} failed: {Path(error.cmd[0]).name} ended with {error.returncode}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist", help="as for `autoprune search` (default: %(default)s)")
    parser.add_argument("--model", help="model of a built-in task (default: the task's)")
    parser.add_argument("--data-dir", help="data of a built-in task (default: the task's)")
    parser.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    parser.add_argument("--budget", action="append", required=True, help="`33%%` or `1.2ms`; may be repeated")
    parser.add_argument("--points", type=int, nargs="+", default=[0, 2_000, 10_000, 50_000], help="sample passes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of calibration data and fine-tuning")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=known())
    parser.add_argument("--int8", action="store_true", help="quantize what the tools pruned (rows end in -int8)")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/peers.csv"), help="default: %(default)s")
    return parser.parse_args()


def known() -> str:
    return f"of {', '.join(METHODS)} (default: all)"


def environment(folder: Path, tool: str) -> Path:
    """The interpreter of a tool's environment, which is made or brought up to date first if need be."""
    python = folder.resolve() / tool / "bin" / "python"
    stamp = folder / tool / "installed.txt"
    requirements = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt")]
    wanted = "\n".join([*TOOLS[tool], *requirements])
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(TOOLS[tool])} into {folder / tool}", flush=True)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / tool], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        autoprune = ["-e", f"{ROOT}[demo]", "-c", ROOT / "constraints.txt"]  # the data of one task comes with `demo`
        subprocess.run([*install, *autoprune, *TOOLS[tool]], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def work(python: Path, order: Order) -> None:
    """Run one method in its environment, with the autoprune of this checkout even if another one made it."""
    worker = Path(__file__).with_name("peer_worker.py")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run([python, worker, order.to_json()], check=True, env=settings)


if __name__ == "__main__":
    main()
