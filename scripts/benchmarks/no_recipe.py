"""Fine-tune published models that come with weights, but without a training recipe: the repair against what follows it.

Each model is cut to half its MACs by one share of all widths, repaired, and fine-tuned without labels: by the rate that
was the default of earlier versions, without held-out data, and by the recipe that a short test finds, with them. The
score is the closeness to the dense outputs on test data, 1 minus the relative squared error.

The weights are inside wheels, which are unpacked and not installed, because they pin other versions of torch:

    pip download --no-deps -d DIR facenet-pytorch resemblyzer
    python scripts/benchmarks/no_recipe.py DIR --json no_recipe.json

Images are crops of two photographs of scikit-learn; voices are synthetic.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import autoprune
from autoprune.evaluation import DenseModel
from autoprune.evaluation.dense_model import reconstruction_of
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from autoprune.training.finetune import finetune
from autoprune.training.recipe_search import find_recipe
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs

RATE = 16_000
HOP = 160


def voices(count: int, seconds: float, seed: int) -> Tensor:
    """Return synthetic voices `[count, samples]`: harmonics of a gliding pitch through moving formants, and noise."""
    random = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * RATE)) / RATE
    waves = []
    for _ in range(count):
        pitch = random.uniform(80, 300) * 2 ** (random.uniform(0.05, 0.3) * np.sin(time_s * random.uniform(3, 12)))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        harmonics = np.arange(1, 24)[:, None]
        wave = np.zeros_like(time_s)
        for low, high in ((300, 900), (900, 2500), (2300, 3500)):
            centre = random.uniform(low, high) + 0.1 * low * np.sin(time_s * random.uniform(2, 15))
            gain = np.exp(-(((harmonics * pitch - centre) / random.uniform(120, 300)) ** 2))
            wave += (gain * np.sin(harmonics * phase)).sum(0)
        syllables = np.clip(np.sin(2 * np.pi * random.uniform(2, 5) * time_s + random.uniform(0, 6)) + 0.4, 0, 1)
        wave = wave * syllables + random.normal(size=len(time_s)) * random.uniform(0.001, 0.05)
        waves.append(wave / np.abs(wave).max() * random.uniform(0.1, 0.8))
    return torch.tensor(np.array(waves), dtype=torch.float32)


def mels(waves: Tensor, bins: int, window: int, *, power: int) -> Tensor:
    """Return mel spectrograms `[N, frames, bins]` with triangular filters up to 8 kHz."""
    spectrum = torch.stft(waves, window, HOP, window=torch.hann_window(window), return_complex=True).abs() ** power
    frequencies = torch.linspace(0, RATE / 2, window // 2 + 1)
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, float(highest), bins + 2) / 2595) - 1)
    rise = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return (filters @ spectrum).transpose(1, 2)


def crops(count: int, size: int, seed: int) -> Tensor:
    """Return crops `[count, 3, size, size]` of two photographs, in [-1, 1] as MTCNN takes them."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(seed)
    photographs = [torch.tensor(image).permute(2, 0, 1).float() for image in load_sample_images().images]
    images = []
    for _ in range(count):
        photograph, side = photographs[random.integers(2)], int(random.integers(size, 6 * size))
        side = min(side, photograph.shape[1])
        top, left = (int(random.integers(0, extent - side + 1)) for extent in photograph.shape[1:])
        part = photograph[None, :, top : top + side, left : left + side]
        images.append(nn.functional.interpolate(part, (size, size), mode="area")[0])
    return (torch.stack(images) - 127.5) / 128


def module_of(path: Path, name: str, package: str = "") -> types.ModuleType:
    """Import one file, without the package that it is in."""
    spec = importlib.util.spec_from_file_location(f"{package}.{name}" if package else name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Joined(nn.Module):
    """All outputs of a detection net, as one tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return boxes, points and probabilities side by side."""
        return torch.cat(self.net(x), dim=1)


def mtcnn(name: str, size: int) -> Callable[[Path], tuple[nn.Module, Callable[[int, int], Tensor]]]:
    """Return what loads a net of the MTCNN face detector, and its data."""

    def load(folder: Path) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
        utils = types.ModuleType("facenet.utils.detect_face")
        utils.detect_face = utils.extract_face = None  # pyright: ignore[reportAttributeAccessIssue]
        for package in ("facenet", "facenet.utils"):
            sys.modules[package] = types.ModuleType(package)
        sys.modules["facenet.utils.detect_face"] = utils
        nets = module_of(folder / "facenet_pytorch/models/mtcnn.py", "mtcnn", "facenet")
        return Joined(getattr(nets, name)()), lambda count, seed: crops(count, size, seed)

    return load


def voice_encoder(folder: Path) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """Return the LSTM of Resemblyzer, and its data: 0.8 s of voice in 40 mel bins."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            _, (hidden, _) = self.lstm(x)
            embedding = torch.relu(self.linear(hidden[-1]))
            return embedding / torch.norm(embedding, dim=1, keepdim=True)

    encoder = Encoder()
    state = torch.load(folder / "resemblyzer/pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})
    return encoder, lambda count, seed: mels(voices(count, 0.8, seed), 40, 400, power=2)


MODELS = {
    "MTCNN R-Net": mtcnn("RNet", 24),
    "MTCNN O-Net": mtcnn("ONet", 48),
    "Resemblyzer LSTM": voice_encoder,
}


def task_of(name: str, folder: Path, examples: int) -> autoprune.Task:
    """Return the task of a model: no loss, no recipe, so that it learns the dense outputs."""
    net, data = MODELS[name](folder)
    net.eval().requires_grad_(True)
    sets = [TensorDataset(data(count, seed)) for seed, count in enumerate((examples, 256, 256))]
    return autoprune.Task(
        name=name,
        build_model=lambda: copy.deepcopy(net),
        example_inputs=(sets[0].tensors[0][:1],),
        train_set=sets[0],
        val_set=sets[1],
        test_set=sets[2],
    )


def half(structure: Structure) -> Policy:
    """Return the policy of half the dense MACs that keeps the same share of every unit."""
    dense = int(structure.macs(structure.widths([structure.dense_policy()]))[0])
    for percent in range(100, 0, -1):
        widths = {unit.name: max(1, round(unit.width * percent / 100)) for unit in structure.units}
        policy = Policy(space_id="half", widths=widths)
        if structure.macs(structure.widths([policy]))[0] <= dense / 2:
            return policy
    raise ValueError("no policy has half the MACs")


def row_of(name: str, folder: Path, examples: int, samples: int, seeds: int) -> dict[str, Any]:
    """Return scores after the repair, after the earlier default, and after the tested recipe with held-out data."""
    task = task_of(name, folder, examples)
    dense = task.build_model().eval()
    structure = analyze(dense, task.example_inputs)
    order = channel_order(score_units(structure, "l2"))
    reconstruction = reconstruction_of(task, structure, 0)
    dense_model = DenseModel(task=task, module=dense, structure=structure, order=order, reconstruction=reconstruction)
    policy, passes = half(structure), SamplePasses()
    cut = dense_model.cut(policy)
    repaired = cut.shrink()
    dense_model.repair(repaired, cut, passes)
    dense_outputs = predict_outputs(dense, task, task.test_set)

    def score(model: nn.Module) -> float:
        try:
            return evaluate(model, task, task.test_set, dense_outputs=dense_outputs).score
        except autoprune.AutopruneError:
            return float("nan")

    start = time.monotonic()
    cost = dense_model.relative_cost(policy)
    choice = find_recipe(repaired, task, teacher=dense, held_out=dense_model.held_out, seed=0, relative_cost=cost)
    seconds = time.monotonic() - start
    before, after, undone, scales = [], [], [], []
    for seed in range(seeds):
        plain, guarded = copy.deepcopy(repaired), copy.deepcopy(repaired)
        try:
            finetune(plain, task, samples=samples, seed=seed, teacher=dense)
            before.append(score(plain))
        except autoprune.AutopruneError:
            before.append(float("nan"))
        result = finetune(
            guarded,
            task,
            samples=samples,
            seed=seed,
            recipe=choice.recipe,
            teacher=dense,
            held_out=dense_model.held_out,
        )
        after.append(score(guarded))
        undone.append(result.undone)
        scales.append(result.rate_scale)
    return {
        "model": name,
        "params": sum(p.numel() for p in dense.parameters()),
        "repaired_score": score(repaired),
        "default_scores": before,
        "tested_scores": after,
        "undone": undone,
        "rate_scales": scales,
        "optimizer": choice.recipe.optimizer,
        "lr": choice.recipe.lr,
        "test_sample_passes": choice.sample_passes,
        "test_seconds": seconds,
        "tests": choice.to_json()["tests"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, scores as mean over the seeds."""
    lines = [
        "| model | repaired | SGD, rate 0.02 | tested recipe, held-out data | recipe | undone | passes of the test |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = (sum(row[key]) / len(row[key]) for key in ("default_scores", "tested_scores"))
        lines.append(
            f"| {row['model']} | {row['repaired_score']:.3f} | {before:.3f} | {after:.3f} | {row['optimizer']} "
            f"{row['lr']:g} | {sum(row['undone'])} of {len(row['undone'])} | {row['test_sample_passes']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--examples", type=int, default=2_000, help="training examples")
    parser.add_argument("--samples", type=int, default=2_000, help="examples that a fine-tuning trains on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that all numbers are written to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for wheel in options.wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
        for name in options.models:
            rows.append(row_of(name, Path(folder), options.examples, options.samples, options.seeds))
            print(rows[-1], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
