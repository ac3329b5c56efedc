"""Models in the form that a target runs (ONNX, ONNX with int8 layers, PyTorch), timed there beside the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from autoprune.device.target import adds_in_16_bits
from autoprune.device.timing import Feeds, Model, Timings
from autoprune.evaluation import DenseModel
from autoprune.export.onnx_file import export_candidate
from autoprune.manifest import Manifest
from autoprune.onnxgraph.export import serialized
from autoprune.onnxgraph.quantization import quantized
from autoprune.onnxgraph.treated import treated
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.measurer import Measurer
from autoprune.profiling.policy_timer import PolicyTimer, finite_feeds
from autoprune.quantization.numbers import Quantization
from autoprune.records import Policy
from autoprune.runfolder import RunFolder, int8_beside, read_json, write_atomic
from autoprune.task.batches import batches, length, sample_rows

_CALIBRATION_BATCHES, _CALIBRATION_EXAMPLES = 4, 32

_MEASURED = 4
"""Times that a policy is measured where noise decides whether it meets a budget, at most."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Puts models into the form that the target runs, and has them measured.

    `foreign` lists in what the target of the latency table differs from the measured one. Unless it is empty, no
    measurement counts: latencies are the predicted ones. `seed` draws the examples that int8 ranges are taken from.
    """

    folder: RunFolder
    dense_model: DenseModel
    measurer: Measurer
    seed: int
    foreign: tuple[str, ...] = ()

    @property
    def int8(self) -> bool:
        """Whether the target runs int8 models."""
        return self.measurer.target.precision == "int8"

    def shipped(self, onnx: Path, policy: Policy | None = None) -> Path:
        """Return the file to deploy of a model exported to `onnx`: itself, or the one with int8 layers beside it."""
        return int8_beside(onnx) if self.int8 or (policy is not None and policy.is_rounded) else onnx

    def export(
        self, model: nn.Module, onnx: Path, policy: Policy | None = None, numbers: Quantization | None = None
    ) -> Model:
        """Write the ONNX file of a model in fp32, and the one with int8 layers beside it where that is deployed.

        The file is written for PyTorch targets, too: it is part of every result.

        Args:
            model: in fp32.
            onnx: path of the file in fp32.
            policy: of the model (default: no layer is treated).
            numbers: of its int8 layers. Without them the file takes its time, but its outputs mean nothing.

        Returns:
            The form that the target runs.

        Raises:
            StructureError: for a model that cannot be exported or quantized.
            UsageError: layers are treated, and the target cannot run such a model.
        """
        treatments = policy.timed.treatments if policy is not None and policy.is_rounded else {}
        if treatments:
            self.measurer.target.require_treated_layers()
        export_candidate(model, self.dense_model.task.example_inputs, onnx, sizes=self.dense_model.structure.sizes)
        if self.measurer.target.runtime == "torch":
            return model
        if self.int8:
            seven_bits = adds_in_16_bits(self.measurer.target.fingerprint())
            file = quantized(onnx, *self._calibration(), seven_bits=seven_bits)
            write_atomic(self.shipped(onnx), serialized(file))
        if treatments:
            ranges, weights = (numbers.ranges, numbers.weights) if numbers else (None, None)
            arithmetic = numbers.arithmetic if numbers else self.dense_model.arithmetic
            file = treated(onnx, treatments, ranges, weights, arithmetic)
            write_atomic(self.shipped(onnx, policy), serialized(file))
        return self.shipped(onnx, policy)

    def dense(self) -> Model:
        """Return the dense model as the target runs it, exported once for a run."""
        path, module = self.folder.dense_onnx, self.dense_model.module
        if self.measurer.target.runtime == "torch" and path.exists():
            return module
        if self.shipped(path).exists():
            return self.shipped(path)
        form = self.export(module, path)
        Manifest(self.folder).record(*{path, self.shipped(path)}, sources=[self.folder.dense])
        return form

    def timings(self, models: Sequence[Model]) -> Timings:
        """Time models, in the form of `export`, beside the dense one."""
        feeds = finite_feeds(self.dense_model.structure, self.measurer.target.batch)
        return self.measurer.timings(models, self.dense(), feeds)

    def measured_ratios(self) -> dict[str, float]:
        """Return the latencies of candidates that were measured, as shares of the dense model's, by their digests."""
        path = self.folder.measured
        return dict(read_json(path, "ratios")["ratios"]) if path.exists() else {}

    def ratios(self, policies: Sequence[Policy], costs: CostModel) -> npt.NDArray[np.float64]:
        """Return latencies as shares of the dense model's `[P]`: measured together, or predicted for a foreign table.

        Where no budget limits latency, they are not measured: whatever they are, they meet every budget.

        Policies so close to a budget that noise decides are measured up to four times. What is known then stays, so
        that a resumed run decides as it did before, in a busier moment, too. The models are made by the timer of a
        latency table, out of one export: the exporter takes seconds for each model, and weights do not matter to
        latency.
        """
        if self.foreign or not costs.knows_latency:
            return costs.predicted_ratios(policies)
        path, known = self.folder.measured, self.measured_ratios()
        new = [policy for policy in dict.fromkeys(policies) if policy.digest() not in known]
        if new:
            timer = self._timer
            models = {policy: timer.build(policy) for policy in new}
            ratios = dict[Policy, list[float]]()
            for _ in range(_MEASURED):
                timings = self.measurer.timings([models[policy] for policy in new], timer.dense, timer.feeds)
                for policy, ratio in zip(new, timings.ratios, strict=True):
                    ratios.setdefault(policy, []).append(ratio)
                sd = timings.noise / math.sqrt(len(ratios[new[0]]))
                new = [policy for policy in new if costs.undecided(policy, float(np.mean(ratios[policy])), sd)]
                if not new:
                    break
            known |= {policy.digest(): float(np.mean(each)) for policy, each in ratios.items()}
            Manifest(self.folder).write_json(path, {"ratios": known})
        return np.array([known[policy.digest()] for policy in policies])

    @cached_property
    def _timer(self) -> PolicyTimer:
        timer = self.measurer.policy_timer(self.dense_model.structure, seed=self.seed)
        return replace(timer, accuracy_levels=self.dense_model.arithmetic.accuracy_levels)

    def _calibration(self) -> list[Feeds]:
        """Return batches of training inputs that the ranges of int8 activations are taken from."""
        task = self.dense_model.task
        count = min(_CALIBRATION_BATCHES * _CALIBRATION_EXAMPLES, length(task.train_set))
        rows = sample_rows(length(task.train_set), count, seed=self.seed)
        inputs = [task.split(batch)[0] for batch in batches(task.train_set, _CALIBRATION_EXAMPLES, rows=rows)]
        return [[np.ascontiguousarray(x.numpy()) for x in batch] for batch in inputs]
