"""The place where policies of one structure are turned into ONNX models and timed against the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from autoprune.errors import AutopruneError
from autoprune.latency.onnx_model import Resizer, export_onnx
from autoprune.latency.target import Target
from autoprune.latency.timing import Feeds, Protocol, Timings, named_feeds, open_session, time_models
from autoprune.records import Policy, SearchSpace
from autoprune.structure import Structure

Progress = Callable[[str, int, int], None]
"""Called with the stage, the models done and the models of the stage."""

_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that stays the same while policies are measured. `notes` say what was out of the ordinary."""

    structure: Structure
    space: SearchSpace
    target: Target
    seed: int
    dense: onnx.ModelProto
    feeds: Feeds
    build: Callable[[Policy], bytes]
    on_progress: Progress
    notes: tuple[str, ...]

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Names of the units, in the order of the columns of widths."""
        return tuple(unit.name for unit in self.structure.units)

    def policy(self, widths: np.ndarray) -> Policy:
        """The policy of one row of widths `[U]`."""
        return self.space.policy({name: int(w) for name, w in zip(self.unit_names, widths, strict=True)})

    def models(self, widths: np.ndarray, stage: str) -> Iterator[bytes]:
        """ONNX models of rows of widths `[P, U]`, one at a time."""
        for done, row in enumerate(widths):
            self.on_progress(stage, done, len(widths))
            yield self.build(self.policy(row))
        self.on_progress(stage, len(widths), len(widths))

    def time(self, widths: np.ndarray, protocol: Protocol) -> Timings:
        """Time rows of widths `[P, U]` against the dense model."""
        models = self.models(widths, "timing")
        reference = self.dense.SerializeToString()
        return time_models(models, self.target, self.feeds, reference=reference, protocol=protocol, seed=self.seed)


def make_bench(
    structure: Structure, space: SearchSpace, target: Target, *, seed: int, on_progress: Progress | None
) -> Bench:
    """Export the dense model and find out how policies become ONNX models: by resizing, else by exporting each.

    Resizing is proven right on one random policy first. Raises `StructureError` when the model cannot be exported.
    """
    rng = np.random.default_rng(seed)
    dense = export_onnx(structure.model, structure.example_inputs)
    feeds = random_feeds(structure, target.batch, seed)
    policy = space.policy({name: int(rng.choice(levels)) for name, levels in space.levels.items()})
    try:
        build = Resizer(dense, structure).resize
        difference = _difference(structure, policy, build(policy), target, feeds)
        reason = f"a resized model differs by {difference:.2g}" if not difference <= _TOLERANCE else None
    except (AutopruneError, ValueError, IndexError) as error:
        build, reason = _exporter(structure), str(error)
    return Bench(
        structure=structure,
        space=space,
        target=target,
        seed=seed,
        dense=dense,
        feeds=feeds,
        build=_exporter(structure) if reason else build,
        on_progress=on_progress or (lambda stage, done, total: None),
        notes=(f"every policy was exported anew, which is slower: {reason}",) if reason else (),
    )


def random_feeds(structure: Structure, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Inputs of the structure's shapes at `batch`: standard normal numbers, or the example itself for whole numbers."""
    rng = np.random.default_rng(seed)
    feeds = []
    for example in structure.example_inputs:
        shape = (batch, *example.shape[1:]) if example.dim() else ()
        value = example[:1].expand(shape).numpy() if example.dim() else example.numpy()
        if example.is_floating_point():
            value = rng.standard_normal(shape, dtype=np.float32)
        feeds.append(np.ascontiguousarray(value))
    return feeds


def _exporter(structure: Structure) -> Callable[[Policy], bytes]:
    def export(policy: Policy) -> bytes:
        shrunk = structure.shrink(policy, prove=False)
        return export_onnx(shrunk, structure.example_inputs).SerializeToString()

    return export


def _difference(structure: Structure, policy: Policy, model: bytes, target: Target, feeds: Feeds) -> float:
    """Largest output difference between a resized ONNX model and the shrunk PyTorch model, relative to the output."""
    session = open_session(model, target)
    shrunk = structure.shrink(policy, prove=False).eval()
    with torch.no_grad():
        wanted = shrunk(*[torch.from_numpy(value) for value in feeds])
    tensors = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
    pairs = zip((t.numpy() for t in tensors), session.run(None, named_feeds(session, feeds)), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in pairs)
