"""Published models that come with weights inside wheels, but without a recipe, and data for them: of `no_recipe.py`."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import autoprune

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


def pitch_estimator(folder: Path) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """Return the conformer of torchfcpe, which estimates pitch, and its data: 0.3 s of voice in 128 mel bins."""
    sys.modules["fcpe"] = types.ModuleType("fcpe")
    module_of(folder / "torchfcpe/model_conformer_naive.py", "model_conformer_naive", "fcpe")
    nets = module_of(folder / "torchfcpe/models.py", "models", "fcpe")
    saved = torch.load(folder / "torchfcpe/assets/fcpe_c_v001.pt", map_location="cpu", weights_only=True)
    config = saved["config_dict"]["model"]
    options = {
        key: config[key] for key in ("out_dims", "hidden_dims", "n_layers", "n_heads", "use_fa_norm", "conv_only")
    }
    net = nets.CFNaiveMelPE(saved["config_dict"]["mel"]["num_mels"], **options)
    net.load_state_dict(saved["model"], strict=False)
    nn.utils.parametrize.remove_parametrizations(net.output_proj, "weight")
    log = lambda waves: torch.log(mels(waves, 128, 1024, power=1).clamp_min(1e-5))  # noqa: E731
    return net, lambda count, seed: log(voices(count, 0.31, seed))


MODELS = {
    "MTCNN R-Net": mtcnn("RNet", 24),
    "MTCNN O-Net": mtcnn("ONet", 48),
    "Resemblyzer LSTM": voice_encoder,
    "FCPE conformer": pitch_estimator,
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
