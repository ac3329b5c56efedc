"""Seconds and peak memory of every stage on four large models, and how both grow with depth.

python scripts/benchmarks/stages.py
python scripts/benchmarks/stages.py --models resnet50 bert --stages units check

Needs torchvision and transformers. Every stage runs in a process of its own, on one thread, after the stages that it
needs; CPU seconds (user + system) and the peak of resident memory are those of the stage alone, the memory with all
that the process holds. With each model goes one that is twice as deep: every block is there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from autoprune import Task
from autoprune.config import load_config
from autoprune.device.connect import make_target
from autoprune.onnxgraph.export import export_onnx
from autoprune.pipeline.check import check_up
from autoprune.pipeline.dense import seconds_per_pass
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.pruning.ranking import round_width
from autoprune.records import Policy
from autoprune.structure import Structure, analyze

CLASSES, TOKENS, WORDS = 1000, 128, 30_000


def resnet50(times: int = 1) -> nn.Module:
    resnet: Any = import_module("torchvision.models.resnet")

    return resnet.ResNet(resnet.Bottleneck, [times * blocks for blocks in (3, 4, 6, 3)])


def vit_b_16(times: int = 1) -> nn.Module:
    models: Any = import_module("torchvision.models")

    return models.VisionTransformer(224, 16, num_layers=12 * times, num_heads=12, hidden_dim=768, mlp_dim=3072)


def mobilenet_v2(times: int = 1) -> nn.Module:
    models: Any = import_module("torchvision.models")

    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    return models.MobileNetV2(inverted_residual_setting=[[t, c, n * times, s] for t, c, n, s in blocks])


def bert(times: int = 1) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_hidden_layers=12 * times, vocab_size=WORDS))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet50": resnet50, "vit_b_16": vit_b_16, "bert": bert, "mobilenet_v2": mobilenet_v2,
}  # fmt: skip
TIMES = (1, 2)


def make_task() -> Task:
    """Random data for the model that the environment names (`STAGES_MODEL`, `STAGES_TIMES`)."""
    name, times = os.environ["STAGES_MODEL"], int(os.environ["STAGES_TIMES"])
    generator = torch.Generator().manual_seed(0)
    text = name == "bert"
    x = torch.randint(0, WORDS, (192, TOKENS), generator=generator) if text else torch.randn(192, 3, 224, 224)
    y = torch.randint(0, 2 if text else CLASSES, (192,), generator=generator)
    return Task(
        name=name,
        build_model=lambda: MODELS[name](times).eval(),
        example_inputs=cast(Any, {"input_ids": x[:1]} if text else (x[:1],)),
        train_set=TensorDataset(x[:64], y[:64]),
        val_set=TensorDataset(x[64:128], y[64:128]),
        test_set=TensorDataset(x[128:], y[128:]),
        outputs="logits" if text else None,
        loss=F.cross_entropy,
        metric=accuracy if not text else None,
    )


def accuracy(model: nn.Module, data: Any) -> float:
    with torch.no_grad():
        right = [int(model(x[None]).argmax()) == int(y) for x, y in data]
    return sum(right) / len(right)


def half(structure: Structure) -> Policy:
    return Policy(space_id="", widths={u.name: round_width(0.5 * u.width, u.width) for u in structure.units})


def prepared(stage: str) -> Callable[[], object]:
    """Return the stage as a call, after everything that it needs is done."""
    task = make_task()
    if stage == "check":
        config = load_config(None, {"task": f"{__file__}:make_task"})
        return lambda: _told(check_up(config, on_finding=lambda finding: print(finding, file=sys.stderr, flush=True)))
    model = task.build_model()
    if stage == "units":
        return lambda: analyze(model, task.example_inputs, task.outputs)
    if stage == "sample pass":
        return lambda: seconds_per_pass(task, model)
    structure = analyze(model, task.example_inputs, task.outputs)
    policy = half(structure)
    stages: dict[str, Callable[[], object]] = {
        "shrink": lambda: structure.shrink(policy, prove=False),
        "shrink, proven": lambda: structure.shrink(policy),
        "ONNX export": lambda: export_onnx(structure.shrink(policy, prove=False).eval(), structure.example_inputs),
        "prepare timing": lambda: make_policy_timer(structure, make_target("ort-cpu")),
    }
    return stages[stage]


def _told(checkup: Any) -> None:
    if not checkup.works:
        raise SystemExit(f"check fails: {[f for f in checkup.findings if f.works is not True]}")


STAGES = ("units", "shrink", "shrink, proven", "ONNX export", "prepare timing", "sample pass", "check")


def run_stage(stage: str) -> dict[str, float]:
    """Return wall seconds, CPU seconds and the peak of resident memory (MB) of one stage in this process."""
    torch.set_num_threads(1)
    work = prepared(stage)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = _cpu(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - start, _cpu() - before
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(stage: str, model: str, times: int) -> dict[str, float] | None:
    """Run one stage in a process of its own; `None` when it fails."""
    variables = os.environ | {"STAGES_MODEL": model, "STAGES_TIMES": str(times)}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, "--run", stage]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        errors.seek(0)
        print(f"{stage} of {model} x {times} fails: {errors.read()[-500:]}", file=sys.stderr)
        return None


def row(stage: str, model: str, once: dict[str, float] | None, twice: dict[str, float] | None) -> str:
    """Return one row of the table in Markdown."""
    if once is None:
        return f"| {stage} | {model} | fails | | | | |"
    growth = ["", ""] if twice is None else [f"x {twice[key] / once[key]:.1f}" for key in ("cpu_s", "peak_mb")]
    numbers = (f"{once['wall_s']:.1f}", f"{once['cpu_s']:.1f}", f"{once['peak_mb']:,.0f}")
    return "| " + " | ".join((stage, model, *numbers, *growth)) + " |"


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--times", nargs="+", type=int, default=list(TIMES), help="1, or 1 2 for the growth, too")
    parser.add_argument("--run", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run_stage(given.run)))
        return
    print("| stage | model | wall s | CPU s | peak MB | CPU, twice as deep | memory, twice as deep |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for stage in given.stages:
        for model in given.models:
            once = measured(stage, model, 1)
            twice = measured(stage, model, 2) if 2 in given.times and once is not None else None
            print(row(stage, model, once, twice), flush=True)


if __name__ == "__main__":
    main()
