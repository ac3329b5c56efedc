"""The trained dense model of a task, with its structure, the order of its channels, and what repairs its cut models."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from autoprune.evaluation.calibration_examples import arithmetic_of, calibration_inputs, more_inputs, reconstruction_of
from autoprune.evaluation.costs import sizes
from autoprune.evaluation.layer_pairs import paired_layers
from autoprune.evaluation.zeros import TrainedZeros, note_treatments, patterns_of
from autoprune.pruning import Cut
from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from autoprune.quantization.calibration import calibrated, calibration_passes, split_treatments
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.training_twin import coarse_bits, training_twin
from autoprune.quantization.twin import make_twin
from autoprune.records import Policy
from autoprune.recovery.batchnorm import recalibrate
from autoprune.recovery.layer_fitting import FITTING_RUNS
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.low_rank import factorized
from autoprune.recovery.optimal_rounding import MomentRounding, round_in_blocks
from autoprune.recovery.prefix import PrefixCache
from autoprune.recovery.sparse import make_sparse
from autoprune.runfolder import RunFolder, read_json
from autoprune.structure import GraphModel, ModelForm, Structure, form_at_half, module_tensors, trained_form
from autoprune.structure.low_rank import ranks_of, treatments_of_factors, with_ranks
from autoprune.structure.placement import Placement
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import FinetuneResult, OnProgress, finetune
from autoprune.training.held_out import HeldOut
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import EVALUATION_BATCH, evaluate, predict_outputs
from autoprune.training.teacher import TeacherMemory
from autoprune.treatments import Treatment


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """A trained dense model and everything that is the same for all policies that cut it.

    `module` is the model itself. `order` ranks the channels of each unit, most important first. A `reconstruction`
    adjusts the readers of pruned channels by least squares; without one, batch norms alone are recalibrated. `form` is
    that of its pruned models; `None` where it is not decided yet. `arithmetic` is that of the device of the latency
    table.
    """

    task: Task
    module: nn.Module
    structure: Structure
    order: dict[str, list[int]]
    reconstruction: Reconstruction | None = None
    form: ModelForm | None = None
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC

    @classmethod
    def open(cls, task: Task, dense: nn.Module, structure: Structure, folder: RunFolder) -> DenseModel:
        """Return the dense model of a run, with the channel order, recipe and form that its folder holds."""
        if task.finetune_recipe is None and folder.recipe.exists():
            task = replace(task, finetune_recipe=Recipe(**read_json(folder.recipe, "recipe")["recipe"]))
        channels = read_json(folder.order, "reconstruct", "seed", "order")
        reconstruction = reconstruction_of(task, structure, channels["seed"]) if channels["reconstruct"] else None
        form = ModelForm.from_json(read_json(folder.form, "name", "reason", "notes")) if folder.form.exists() else None
        return cls(
            task=task,
            module=dense,
            structure=structure,
            order=channels["order"],
            reconstruction=reconstruction,
            form=form,
            arithmetic=arithmetic_of(folder),
        )

    @property
    def not_reconstructed(self) -> tuple[str, ...]:
        """Units with a reader that is not adjusted when channels of the unit go."""
        covered = self.reconstruction.covered if self.reconstruction is not None else frozenset()
        return tuple(unit.name for number, unit in enumerate(self.structure.units) if number not in covered)

    def cut(self, policy: Policy) -> Cut:
        """Return the channels that a policy keeps: the first ones of the order."""
        return Cut.of(self.structure, self.order, policy)

    def repair(self, model: GraphModel, cut: Cut, passes: SamplePasses) -> None:
        """Recover the model of a cut, in place, without labels or gradients."""
        if self.reconstruction is None:
            recalibrate(model, self.task, passes=passes, relative_cost=self.relative_cost(cut.policy))
            return
        run = self.reconstruction.apply(model, cut.masks)
        passes.forward(self.reconstruction.examples, self._cost_of(cut.policy, run))

    def fitted(self, model: GraphModel, policy: Policy, passes: SamplePasses | None = None) -> GraphModel:
        """Return the model of a policy, repaired, with its factors and zeros; a given one may get zeros in place.

        Raises:
            PolicyError: a layer cannot have its rank.
            TrialError: activations are not finite.
        """
        ranks, patterns = self._ranks(model, policy), patterns_of(policy, self.structure.layers, model)
        if ranks or patterns:
            runs = FITTING_RUNS * (bool(ranks) + bool(patterns))
            (passes or SamplePasses()).forward(runs * len(self._fitting_inputs[0]), self.relative_cost(policy))
            model = make_sparse(factorized(model, ranks, self._fitting_inputs), patterns, self._fitting_inputs)
        return note_treatments(model, policy, self.structure.layers)

    @cached_property
    def _fitting_inputs(self) -> tuple[Tensor, ...]:
        given = self.reconstruction.inputs if self.reconstruction else self._calibration_inputs
        return more_inputs(self.task, self.structure, given)

    def round_coarse_layers(self, model: GraphModel, policy: Policy, passes: SamplePasses) -> None:
        """Round the weights of coarse layers of a repaired model, in place: deploying them changes nothing any more."""
        coarse = self._coarse(model, policy)
        if coarse:
            passes.forward(len(self._fitting_inputs[0]), self.relative_cost(policy))
            round_in_blocks(model, self._placement(model), coarse, self._fitting_inputs)

    def _placement(self, model: GraphModel) -> Placement:
        return self.structure.placement_in(model.captures[False].graph)

    def _coarse(self, model: GraphModel, policy: Policy) -> dict[str, int]:
        return coarse_bits(self._treatments(model, policy))

    def with_empty_factors(self, model: GraphModel, policy: Policy) -> GraphModel:
        """Return the model of a policy, cut, whose layers with ranks have factors of zeros: weights are loaded later.

        Raises:
            PolicyError: a layer cannot have its rank.
        """
        return note_treatments(with_ranks(model, self._ranks(model, policy)), policy, self.structure.layers)

    def _ranks(self, model: GraphModel, policy: Policy) -> dict[str, int]:
        return ranks_of(policy.treatments, self.structure.layers, module_tensors(model))

    def outputs_from_prefix(self, model: GraphModel, cut: Cut, limit: int) -> tuple[Tensor, float] | None:
        """Return the outputs of a repaired model on `limit` validation items, and their cost relative to a dense pass.

        The nodes before the first change are those of the dense model: they run once for all policies that change the
        same nodes. `None` where the first node changes already, or without a reconstruction to name the changes.
        """
        if self.reconstruction is None:
            return None
        changed = self.reconstruction.touched(model.evaluation_graph().graph, cut.masks)
        outputs = self._prefix(limit).outputs(model, changed, self.task.select)
        if outputs is None:
            return None
        return outputs, self._cost_of(cut.policy, changed)

    def _cost_of(self, policy: Policy, nodes: AbstractSet[str]) -> float:
        """Return the MACs of some nodes of a policy's graph as a share of the whole dense model's."""
        widths = self.structure.widths([policy])
        macs = sum(int(op.macs(widths)[0]) for op in self.structure.operators if op.node in nodes)
        return macs / self._dense_macs

    def _prefix(self, limit: int) -> PrefixCache:
        if limit not in self._prefixes:
            rows = sample_rows(length(self.task.val_set), limit)
            inputs = (self.task.split(b)[0] for b in batches(self.task.val_set, EVALUATION_BATCH, rows=rows))
            self._prefixes[limit] = PrefixCache(structure=self.structure, batches=tuple(inputs))
        return self._prefixes[limit]

    def trained_form(self, model: GraphModel) -> nn.Module:
        """Return the form in which a cut model is fine-tuned: the user's own classes where these are proven.

        Raises:
            StructureError: no form computes the gradients of the model.
        """
        return trained_form(self.structure, model) if self._form.name == "native" else model

    def quantization(
        self, model: GraphModel, policy: Policy, passes: SamplePasses | None = None, *, quick: bool = False
    ) -> Quantization:
        """Return the numbers of the treated layers of a policy's model; int8 is calibrated on training examples.

        Ranges are judged by the outputs of layers, and weights rounded by the moments of their inputs; or, `quick`, by
        the tensor itself, and to the nearest steps: in a third to half of the time.

        Raises:
            PolicyError: the policy treats a layer in a way that is not computed.
            StructureError: a layer cannot be treated so.
            TrialError: activations are not finite.
        """
        int8, local = split_treatments(self._treatments(model, policy))
        inputs: tuple[Tensor, ...] = self._calibration_inputs if int8 else ()
        if passes is not None and inputs:
            passes.forward(calibration_passes(len(inputs[0]), quick=quick), self.relative_cost(policy))
        rounding = None if quick else MomentRounding()
        return calibrated(model, self._placement(model), int8, inputs, local, rounding, self.arithmetic)

    def _treatments(self, model: GraphModel, policy: Policy) -> Mapping[str, Treatment]:
        """Return the treatments of a model's layers, where factors are layers of their own."""
        return treatments_of_factors(policy.treatments, model.pruned_to.ranks if model.pruned_to is not None else {})

    def as_deployed(
        self, model: GraphModel, policy: Policy, passes: SamplePasses | None = None, *, quick: bool = False
    ) -> GraphModel:
        """Return what computes as a policy deployed: the model or its twin. Arguments: see `quantization`."""
        if not policy.is_rounded:
            return model
        return self.twin(model, self.quantization(model, policy, passes, quick=quick))

    def twin(self, model: GraphModel, numbers: Quantization) -> GraphModel:
        """Return the twin of a model whose int8 layers have these numbers."""
        return make_twin(model, self._placement(model), numbers)

    @cached_property
    def _calibration_inputs(self) -> tuple[Tensor, ...]:
        return calibration_inputs(self.task, self.structure, self.reconstruction)

    def score(self, model: nn.Module) -> float:
        """Return the task's metric of a model on the validation data."""
        return evaluate(model, self.task, self.task.val_set, dense_outputs=self.dense_outputs).score

    def finetune(
        self,
        model: GraphModel,
        policy: Policy,
        *,
        samples: int,
        seed: int,
        schedule: str = "one-shot",
        passes: SamplePasses | None = None,
        memory: TeacherMemory | None = None,
        on_progress: OnProgress | None = None,
    ) -> FinetuneResult:
        """Fine-tune the model of a policy in place, with this model as teacher.

        It trains in its trained form, or, where steps of weights are coarse, through the rounding. Zeros stay as many,
        and by a `schedule` other than `one-shot` change their places. Without a `memory`, layers are compared with this
        model's if the recipe says so. Other arguments are those of `training.finetune.finetune`.
        """
        form, zeros = self.to_train(model, policy, schedule)
        layers = paired_layers(self.structure, self.cut(policy), self.module, form) if memory is None else None
        result = finetune(
            form, self.task, samples=samples, seed=seed, teacher=self.module, passes=passes, memory=memory,
            relative_cost=self.relative_cost(policy), held_out=self.held_out, terms=zeros.terms,
            layers=layers, on_progress=on_progress,
        )  # fmt: skip
        zeros.take_trained()
        return result

    def to_train(self, model: GraphModel, policy: Policy, schedule: str) -> tuple[nn.Module, TrainedZeros]:
        """Return what is trained of the model of a policy, and its zeros, whose `terms` belong to the training."""
        form = self._through_rounding(model, policy) or self.trained_form(model)
        return form, TrainedZeros(model, form, patterns_of(policy, self.structure.layers, model), schedule)

    def _through_rounding(self, model: GraphModel, policy: Policy) -> GraphModel | None:
        """Return a twin that trains the weights of a model through coarse rounding; `None` where there is none.

        Training steps and trainers of the user's own get no twin: they may need more of the model than its outputs.
        """
        if not self._coarse(model, policy) or self.task.train_step is not None or self.task.finetune is not None:
            return None
        int8, local = split_treatments(self._treatments(model, policy))
        return training_twin(model, self._placement(model), int8, local, self.arithmetic)

    @cached_property
    def _form(self) -> ModelForm:
        return self.form or form_at_half(self.structure)[0]

    @cached_property
    def teacher(self) -> TeacherMemory:
        """Outputs of the dense model in the fine-tunings of one rung, which all take the same batches."""
        return TeacherMemory()

    @cached_property
    def held_out(self) -> HeldOut:
        """Validation examples by which fine-tunings go back to an earlier state."""
        return HeldOut.of(self.task, self.dense_outputs)

    @cached_property
    def _prefixes(self) -> dict[int, PrefixCache]:
        return {}

    def relative_cost(self, policy: Policy) -> float:
        """Return the MACs of a policy as a share of the dense model's: the weight of its sample passes."""
        rows = self.structure.rows([policy.timed], layers := tuple(policy.treatments))
        return int(self.structure.macs(rows, layers)[0]) / self._dense_macs

    def sizes(self, policy: Policy) -> dict[str, int]:
        """Return `params`, `macs`, `bytes` and `activation_bytes` of a policy."""
        layers = tuple(policy.treatments)
        by_name = sizes(self.structure, self.structure.rows([policy], layers), layers)
        return {name: int(size) for name, (size,) in by_name.items()}

    @cached_property
    def _dense_macs(self) -> int:
        return max(self.sizes(self.structure.dense_policy())["macs"], 1)

    @cached_property
    def dense_outputs(self) -> Tensor:
        """Outputs of the dense model on the validation data; every divergence is measured against them."""
        return predict_outputs(self.module, self.task, self.task.val_set)
