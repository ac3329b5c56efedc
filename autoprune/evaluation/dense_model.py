"""The trained dense model of a task, with its structure, the order of its channels, and what repairs its cut models."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from autoprune import memory_limits
from autoprune.evaluation.costs import sizes
from autoprune.model.randomness import seeded
from autoprune.pruning import keep_best
from autoprune.records import Policy
from autoprune.recovery.batchnorm import recalibrate
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.prefix import PrefixCache
from autoprune.runfolder import RunFolder, read_json
from autoprune.structure import GraphModel, Structure
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows, take
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import EVALUATION_BATCH, predict_outputs
from autoprune.training.teacher import TeacherMemory

RECONSTRUCTION_EXAMPLES = 256
_FEWEST_EXAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """A trained dense model and everything that is the same for all policies that cut it.

    `module` is the model itself. `order` ranks the channels of each unit, most important first. A `reconstruction`
    adjusts the readers of pruned channels by least squares; without one, batch norms alone are recalibrated.
    """

    task: Task
    module: nn.Module
    structure: Structure
    order: dict[str, list[int]]
    reconstruction: Reconstruction | None = None

    @classmethod
    def open(cls, task: Task, dense: nn.Module, structure: Structure, folder: RunFolder) -> DenseModel:
        """Return the dense model of a run, with the channel order that its folder holds."""
        channels = read_json(folder.order, "reconstruct", "seed", "order")
        reconstruction = None
        if channels["reconstruct"]:
            reconstruction = reconstruction_of(task, structure, channels["seed"])
        return cls(task=task, module=dense, structure=structure, order=channels["order"], reconstruction=reconstruction)

    @property
    def not_reconstructed(self) -> tuple[str, ...]:
        """Units of which some reader is left as it is when their channels go."""
        covered = self.reconstruction.covered if self.reconstruction is not None else frozenset()
        return tuple(unit.name for number, unit in enumerate(self.structure.units) if number not in covered)

    def shrink(self, policy: Policy, *, prove: bool = True) -> GraphModel:
        """The pruned model of a policy with the dense model's weights, in evaluation mode."""
        model = self.structure.shrink(policy, keep_best(self.order, policy), prove=prove)
        model.eval()
        return model

    def repair(self, model: GraphModel, policy: Policy, passes: SamplePasses) -> None:
        """Recover a model of `shrink`, in place, without labels or gradients."""
        if self.reconstruction is None:
            recalibrate(model, self.task, passes=passes, relative_cost=self.relative_cost(policy))
            return
        run = self.reconstruction.apply(model, self.structure.masks(policy, keep_best(self.order, policy)))
        passes.forward(self.reconstruction.examples, self._cost_of(policy, run))

    def outputs_from_prefix(self, model: GraphModel, policy: Policy, limit: int) -> tuple[Tensor, float] | None:
        """Outputs of a repaired model on `limit` validation items, and what they cost relative to a dense pass.

        What comes before the first change is the dense model's, and is computed once for all policies that change the
        same. `None` where the model changes from the start on, or nothing says what changed.
        """
        if self.reconstruction is None:
            return None
        masks = self.structure.masks(policy, keep_best(self.order, policy))
        changed = self.reconstruction.touched(model.evaluation_graph().graph, masks)
        outputs = self._prefix(limit).outputs(model, changed)
        if outputs is None:
            return None
        return outputs, self._cost_of(policy, changed)

    def _cost_of(self, policy: Policy, nodes: AbstractSet[str]) -> float:
        """MACs of some nodes of a policy's graph as a share of the whole dense model's."""
        widths = self.structure.widths([policy])
        macs = sum(int(op.macs(widths)[0]) for op in self.structure.operators if op.node in nodes)
        return macs / self._dense_macs

    def _prefix(self, limit: int) -> PrefixCache:
        if limit not in self._prefixes:
            rows = sample_rows(length(self.task.val_set), limit)
            found = [self.task.split(b)[0] for b in batches(self.task.val_set, EVALUATION_BATCH, rows=rows)]
            self._prefixes[limit] = PrefixCache(structure=self.structure, batches=tuple(found))
        return self._prefixes[limit]

    @cached_property
    def teacher(self) -> TeacherMemory:
        """What the dense model says in the fine-tunings of one rung, which all take the same batches."""
        return TeacherMemory()

    @cached_property
    def _prefixes(self) -> dict[int, PrefixCache]:
        return {}

    def relative_cost(self, policy: Policy) -> float:
        """MACs of a policy as a share of the dense model's: what its sample passes count."""
        return int(self.structure.macs(self.structure.widths([policy]))[0]) / self._dense_macs

    def sizes(self, policy: Policy) -> dict[str, int]:
        """`params`, `macs`, `bytes` and `activation_bytes` of a policy."""
        found = sizes(self.structure, self.structure.widths([policy]))
        return {name: int(of_policy) for name, (of_policy,) in found.items()}

    @cached_property
    def _dense_macs(self) -> int:
        return max(self.sizes(self.structure.dense_policy())["macs"], 1)

    @cached_property
    def dense_outputs(self) -> Tensor:
        """Outputs of the dense model on the validation data; every divergence is measured against them."""
        return predict_outputs(self.module, self.task, self.task.val_set)


def reconstruction_of(task: Task, structure: Structure, seed: int) -> Reconstruction:
    """A reconstruction on some of the task's training examples."""
    full = structure.widths([structure.dense_policy()])
    room = memory_limits.RECONSTRUCTION_ACTIVATION_BYTES // max(int(structure.peak_activation_bytes(full)[0]), 1)
    count = max(_FEWEST_EXAMPLES, min(RECONSTRUCTION_EXAMPLES, room))
    rows = sample_rows(length(task.train_set), count, seed=seed)
    with seeded(seed):
        inputs, _ = task.split(take(task.train_set, rows))
    return Reconstruction(structure=structure, inputs=inputs)
