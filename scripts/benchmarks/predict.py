"""How many policies a second a latency table predicts, latency and its standard deviation both, on one core.

    python scripts/benchmarks/predict.py [--model resnet20] [--policies 200000]

The table is measured briefly first; how well it predicts does not matter here.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from autoprune.device.connect import make_target
from autoprune.device.timing import Protocol
from autoprune.profiling.profile import profile
from autoprune.space import build_space, find_space, load_spec
from autoprune.structure import analyze
from autoprune.task.builtin import MODELS

REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--policies", type=int, default=200_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    structure = analyze(MODELS[given.model](1, 28, 10).eval(), (torch.zeros(1, 1, 28, 28),))
    space = build_space(load_spec(find_space("multiples")), structure.units, structure.digest())
    quick = Protocol(repeats=3, sample_ms=0.1, retries=0)
    predictor = profile(structure, space, make_target("ort-cpu"), max_seconds=1.0, protocol=quick).predictor(structure)
    rng = np.random.default_rng(0)
    widths = np.stack([rng.choice(space.widths_of(name), size=given.policies) for name in space.levels], axis=1)
    for name, predict in (("latency", predictor.predict), ("latency and deviation", predictor.predict_with_sd)):
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            predict(widths)
            seconds.append(time.perf_counter() - start)
        print(
            f"{given.model}, {name}: {given.policies / np.median(seconds):,.0f} policies a second (median of {REPEATS})"
        )


if __name__ == "__main__":
    main()
