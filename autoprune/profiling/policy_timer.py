"""The place where policies of one structure are turned into ONNX models and timed against the dense one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from autoprune.device.runner import kernel_times, time_models
from autoprune.device.target import Target
from autoprune.device.timing import Feeds, Kernels, Model, Protocol, Timings, named_feeds, open_session
from autoprune.errors import AutopruneError, LatencyError
from autoprune.model.copying import copy_of
from autoprune.onnxgraph.export import export_onnx, serialized, with_constant_weights
from autoprune.onnxgraph.origins import Origin, find_origins, made_distinct, repeats
from autoprune.onnxgraph.outputs import finite_inputs, holds_nan, relative_difference, torch_outputs
from autoprune.onnxgraph.quantization import quantized
from autoprune.onnxgraph.resizer import Resizer, unnamed_weights
from autoprune.onnxgraph.sizes import LearnedSizes, learn_sizes, with_own_shapes
from autoprune.onnxgraph.treated import treated
from autoprune.profiling.duration import OPERATORS, patient_clock
from autoprune.quantization.arithmetic import AccuracyLevels, Arithmetic
from autoprune.records import Policy
from autoprune.structure import Structure
from autoprune.structure.layer_decisions import policy_of

Progress = Callable[[str, int, int], None]
"""Called with the stage, the models done and the models of the stage."""

_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class PolicyTimer:
    """Everything that stays the same while policies are measured. `notes` say what was out of the ordinary.

    `dense_onnx` is the dense export, `None` for targets that run PyTorch itself. `untreated` makes the model of a
    policy's widths, `accuracy_levels` are those of layers in `w8` and `w4`, `clock` tells what a profile has taken, in
    seconds (see `duration.patient_clock`).
    """

    structure: Structure
    target: Target
    seed: int
    dense_onnx: onnx.ModelProto | None
    dense: Model
    feeds: Feeds
    untreated: Callable[[Policy], Model]
    on_progress: Progress
    notes: tuple[str, ...]
    layers: tuple[str, ...] = ()
    accuracy_levels: AccuracyLevels = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows: units, then layers that may be treated."""
        return (*(unit.name for unit in self.structure.units), *self.layers)

    def build(self, policy: Policy) -> Model:
        """Return the model of a policy; ranges of tensors do not change its latency."""
        model, treatments = self.untreated(policy), policy.timed.treatments
        if not treatments or not isinstance(model, bytes):
            return model
        graph = onnx.load_from_string(model)
        return serialized(treated(graph, treatments, arithmetic=Arithmetic(accuracy_levels=self.accuracy_levels)))

    def models(self, rows: np.ndarray, stage: str) -> Iterator[Model]:
        """Models of rows `[P, U + L]`, one at a time."""
        for done, row in enumerate(rows):
            self.on_progress(stage, done, len(rows))
            yield self.build(policy_of(self.columns, row, self.layers))
        self.on_progress(stage, len(rows), len(rows))

    def time(self, rows: np.ndarray, stage: str, protocol: Protocol) -> Timings:
        """Time rows `[P, U + L]` against the dense model."""
        models = self.models(rows, stage)
        return time_models(models, self.target, self.feeds, reference=self.dense, protocol=protocol, seed=self.seed)

    def kernels(self, rows: np.ndarray) -> list[Kernels]:
        """Return kernel times from the runtime's profiler for rows `[P, U + L]`; empty without a profiler."""
        if self.dense_onnx is None:
            return []
        return list(kernel_times(self.models(rows, OPERATORS), self.target, self.feeds))


def make_policy_timer(
    structure: Structure,
    target: Target,
    *,
    layers: Sequence[str] = (),
    seed: int = 0,
    on_progress: Progress | None = None,
    constant_weights: bool | None = None,
) -> PolicyTimer:
    """Prepare the dense model for a target and find out how policies become models.

    ONNX models are made by resizing the dense export, which is first proven right on a random policy and on one without
    branches. Where that proof fails, every policy is exported.

    Args:
        structure: The structure whose policies are timed.
        target: Where they are timed.
        layers: Names of the layers that may be treated, in the order of the last columns of rows.
        seed: Seed of the inputs and of the policy that resizing is proven on.
        on_progress: Called with every model that is built.
        constant_weights: Fill every weight with one number, which compresses well. Default: for another host alone.

    Raises:
        StructureError: The model cannot be exported.
        UsageError: Layers are treated, and the target does not run ONNX models, or quantizes them as a whole.
    """
    if layers:
        target.require_treated_layers()
    constant_weights = bool(target.address) if constant_weights is None else constant_weights
    common: dict[str, Any] = {
        "structure": structure,
        "target": target,
        "seed": seed,
        "feeds": finite_feeds(structure, target.batch, seed),
        "on_progress": on_progress or (lambda stage, done, total: None),
        "layers": tuple(layers),
        "clock": patient_clock(target),
    }
    if target.runtime == "torch":
        shrink = partial(_shrunk, structure)
        dense = structure.model
        return PolicyTimer(**common, dense_onnx=None, dense=dense, untreated=shrink, notes=())
    structure = _with_distinct_weights(structure)
    exported, origins = _dense_export(structure)
    if target.precision == "int8":
        exported = quantized(exported, common["feeds"])
    if constant_weights:
        exported = with_constant_weights(exported)
    build, reason = _builder(structure, exported, origins, target, common["feeds"], constant_weights, seed)
    notes = (f"every policy was exported from scratch, which is slower: {reason}",) if reason else ()
    return PolicyTimer(**common, dense_onnx=exported, dense=serialized(exported), untreated=build, notes=notes)


def _with_distinct_weights(structure: Structure) -> Structure:
    """The same structure with weights and statistics none of which equals another, as those of untrained norms do.

    The exporter stores equal weights once, and then they cannot be cut apart. What they are makes no difference here.
    """
    model, seen = copy_of(structure.model), set()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (t for t in [*model.parameters(), *_statistics(model)] if t.is_floating_point()):
            key = (tuple(weight.shape), hash(weight.detach().float().numpy().tobytes()))
            if key in seen:
                weight.add_(1e-3 * torch.rand(weight.shape, generator=generator).to(weight))
            seen.add(key)
    return replace(structure, model=model)


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """Buffers of normalizations: other buffers, such as masks, may not be what they are by any other number."""
    places = {name: name.rpartition(".") for name, _ in model.named_buffers()}
    norms = {module for module, _, buffer in places.values() if buffer == "running_mean"}
    return [tensor for name, tensor in model.named_buffers() if places[name][0] in norms]


def _dense_export(structure: Structure) -> tuple[onnx.ModelProto, dict[str, Origin]]:
    """The dense export, and the origin of weights that the exporter made out of parameters.

    Where elements of those parameters are equal, it changes them and exports again: an origin is told by its values.
    """

    def export() -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, torch.Tensor]]:
        # The captured model, not the user's: there every layer of a recurrent stack has states of its own.
        exported = with_own_shapes(export_onnx(_shrunk(structure, structure.dense_policy()), structure.example_inputs))
        return exported, *unnamed_weights(exported, structure)

    exported, weights, missing = export()
    equal = [tensor for tensor in missing.values() if repeats(tensor)] if weights else []
    if equal:
        with torch.no_grad():
            made_distinct(equal)
        exported, weights, missing = export()
    return exported, find_origins(weights, {name: tensor.detach().numpy() for name, tensor in missing.items()})


def _builder(
    structure: Structure,
    dense: onnx.ModelProto,
    origins: Mapping[str, Origin],
    target: Target,
    feeds: Feeds,
    constant_weights: bool,
    seed: int,
) -> tuple[Callable[[Policy], bytes], str | None]:
    """How a policy becomes an ONNX model, and why not by resizing if so.

    Sizes inside the graph are learned only where the model does not run without: that takes an export for each group of
    units, or for each unit. One that then runs and differs holds weights that are computed, which no export mends.
    """
    export = partial(_exported, structure, target, feeds, constant_weights)

    def proven(sizes: LearnedSizes | None) -> Callable[[Policy], bytes]:
        resizer = Resizer(dense, structure, sizes, origins)
        for policy in _trials(structure, seed):
            difference = _difference(structure, policy, resizer.resize(policy), target, feeds, constant_weights)
            # Quantized outputs may be anything, but of the right shape and finite.
            if not difference <= (_TOLERANCE if target.precision == "fp32" else sys.float_info.max):
                raise _Differs(f"a resized model differs by {difference:.2g}")
        return resizer.resize

    with suppress(AutopruneError, ValueError, IndexError):
        return proven(None), None
    reason = ""
    for together in (True, False):
        try:
            return proven(learn_sizes(dense, structure, export, together=together)), None
        except (AutopruneError, ValueError, IndexError) as error:
            reason = str(error)
            if isinstance(error, _Differs):
                break
    return lambda policy: serialized(export(policy)), reason


class _Differs(LatencyError):
    """A resized model runs and computes something else, as far as can be told."""


def _trials(structure: Structure, seed: int) -> list[Policy]:
    """A random policy, and one that also removes every branch that may be removed."""
    rng = np.random.default_rng(seed)
    names = [unit.name for unit in structure.units]
    row = np.array([rng.integers(1, unit.width + 1) for unit in structure.units])
    removed = np.where([unit.removable for unit in structure.units], 0, row)
    return [policy_of(names, row), *([policy_of(names, removed)] if (removed == 0).any() else [])]


def _exported(
    structure: Structure, target: Target, feeds: Feeds, constant_weights: bool, policy: Policy
) -> onnx.ModelProto:
    model = with_own_shapes(export_onnx(_shrunk(structure, policy), structure.example_inputs))
    if target.precision == "int8":
        model = quantized(model, feeds)
    return with_constant_weights(model) if constant_weights else model


def _shrunk(structure: Structure, policy: Policy) -> nn.Module:
    return structure.shrink(policy, prove=False).eval()


def random_feeds(structure: Structure, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Inputs of the structure's shapes at `batch`: standard normal numbers, or the example itself for whole numbers."""
    rng = np.random.default_rng(seed)
    feeds = []
    for example in structure.example_inputs:
        shape = (batch, *example.shape[1:]) if example.dim() else ()
        value = example[:1].expand(shape).numpy() if example.dim() else example.numpy()
        if example.is_floating_point():
            value = rng.standard_normal(shape, dtype=np.float32)
        feeds.append(np.array(value, dtype=np.float32 if example.is_floating_point() else value.dtype, order="C"))
    return feeds


def finite_feeds(structure: Structure, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Return `random_feeds`, or the examples at `batch` with a little noise if the outputs are finite only on those.

    The latter is for models that compute a logarithm or a root of their input.
    """
    feeds, examples = random_feeds(structure, batch, seed), structure.example_inputs
    drawn = [torch.from_numpy(value).to(x.dtype) for value, x in zip(feeds, examples, strict=True)]
    repeated = [x[:1].expand(batch, *x.shape[1:]) if x.dim() else x for x in examples]
    inputs = finite_inputs(structure.model, drawn, repeated, torch.Generator().manual_seed(seed))
    return [np.array(x.float().numpy() if x.is_floating_point() else x.numpy(), order="C") for x in inputs]


def _difference(
    structure: Structure, policy: Policy, model: bytes, target: Target, feeds: Feeds, constant_weights: bool
) -> float:
    """Largest output difference between a resized ONNX model and the shrunk PyTorch model, relative to the output.

    Both run on the CPU of this host: the outputs of a model do not depend on the target.
    """
    session = open_session(model, replace(target, provider="CPUExecutionProvider"))
    try:
        outputs = session.run(None, named_feeds(session, feeds))
    except Exception as error:
        raise LatencyError(f"ONNX Runtime cannot run a resized model: {str(error).splitlines()[0][-200:]}") from error
    if constant_weights:  # the numbers mean nothing then; that it runs is the proof
        return 0.0
    wanted = torch_outputs(_shrunk(structure, policy), [torch.from_numpy(value) for value in feeds])
    if holds_nan(wanted):
        raise _Differs("the PyTorch model gives NaN, of random inputs and of the examples, so that nothing is proven")
    return relative_difference(wanted, outputs)
