"""One trial: shrink, repair, fine-tune as the fidelity says, score against the dense model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from autoprune.errors import TrialError
from autoprune.evaluation.dense_model import DenseModel
from autoprune.latency.stand_in import StandInTable
from autoprune.latency.table import LatencyTable
from autoprune.pruning import Cut
from autoprune.records import Policy
from autoprune.runfolder import RunFolder
from autoprune.structure import GraphModel, analyze
from autoprune.task.load import load_task
from autoprune.temporary import TemporaryFolder
from autoprune.training.dense import load_dense, weights_to_bytes
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate
from autoprune.trials import Measurement, TrialResult, TrialSpec

PredictOne = Callable[[Policy], float]
FULL = "full"
"""Name of the fidelity whose models are kept."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Scores policies that cut `dense_model`; `predict_ms` gives the latency of a policy, or what orders policies
    where `latency_source` is "none".

    The result of a full fine-tune holds its weights; its zeros follow the `schedule`, those of shorter ones stay.
    """

    dense_model: DenseModel
    predict_ms: PredictOne
    latency_source: Literal["predicted", "none"] = "predicted"
    schedule: str = "one-shot"

    def __call__(self, spec: TrialSpec) -> TrialResult:
        """Run a trial.

        A fine-tune that lowers the score, or whose loss or outputs are not finite, is undone.

        Raises:
            TrialError: when the outputs of the repaired model are not finite.
        """
        start, passes = time.monotonic(), SamplePasses()
        model, measurement, undone = self._recovered(spec, passes)
        return TrialResult(
            number=spec.number,
            policy=spec.policy,
            fidelity=spec.fidelity,
            status="done",
            seed=spec.seed,
            measurement=measurement,
            seconds=time.monotonic() - start,
            sample_passes=passes.total,
            undone=undone,
            weights=weights_to_bytes(model) if spec.fidelity.name == FULL else None,
        )

    def recovered(self, spec: TrialSpec, passes: SamplePasses) -> GraphModel:
        """Return the pruned model, repaired and, unless that harms it, fine-tuned as the trial's fidelity says."""
        return self._recovered(spec, passes)[0]

    def _recovered(self, spec: TrialSpec, passes: SamplePasses) -> tuple[GraphModel, Measurement, bool]:
        """Return the model of `recovered`, its measurement, and whether its fine-tuning was undone."""
        cut = self.dense_model.cut(spec.policy)
        model = self._repaired(cut, spec, passes)
        start = copy.deepcopy(model.state_dict())
        self.dense_model.round_coarse_layers(model, spec.policy, passes)
        repaired = self._measure(model, cut, spec, passes)
        if not spec.fidelity.finetune_samples:
            return model, repaired, False
        before = copy.deepcopy(model.state_dict())
        model.load_state_dict(start)  # rounded weights are a worse start
        try:
            result = self.dense_model.finetune(
                model,
                spec.policy,
                samples=spec.fidelity.finetune_samples,
                seed=spec.seed,
                schedule=self.schedule if spec.fidelity.name == FULL else "one-shot",
                passes=passes,
                memory=None if self._compares_layers(spec) else self.dense_model.teacher,
            )
            tuned = None if result.undone else self._measure(model, cut, spec, passes)
        except TrialError:
            tuned = None  # the loss or the outputs are not finite any more; those of the repaired model are
        if tuned is not None and tuned.score >= repaired.score:
            return model, tuned, False
        model.load_state_dict(before)
        return model, repaired, True

    def _compares_layers(self, spec: TrialSpec) -> bool:
        """Return whether a fine-tune asks for outputs of layers, which the shared memory of the teacher does not keep.

        Models that are trained as graphs, and steps and trainers of the user's own, compare none.
        """
        task, form = self.dense_model.task, self.dense_model.form
        own = task.train_step is not None or task.finetune is not None or (form is not None and form.name != "native")
        return spec.fidelity.name == FULL and task.tuning_recipe.layer_weight > 0 and not own

    def _repaired(self, cut: Cut, spec: TrialSpec, passes: SamplePasses) -> GraphModel:
        # Shrinking is proven for policies that are fine-tuned; the proxy would spend a fifth of its time on it.
        model = cut.shrink(prove=spec.fidelity.finetune_samples > 0)
        self.dense_model.repair(model, cut, passes)
        return self.dense_model.fitted(model, spec.policy, passes)

    def _measure(self, model: GraphModel, cut: Cut, spec: TrialSpec, passes: SamplePasses) -> Measurement:
        dense_model, limit, prefixed = self.dense_model, spec.fidelity.val_samples, None
        treated = bool(spec.policy.treatments)
        if not treated and not spec.fidelity.finetune_samples and dense_model.task.metric is None:
            prefixed = dense_model.outputs_from_prefix(model, cut, limit)
        evaluation = evaluate(
            dense_model.as_deployed(model, spec.policy, passes, quick=not spec.fidelity.finetune_samples),
            dense_model.task,
            dense_model.task.val_set,
            dense_outputs=dense_model.dense_outputs,
            limit=limit,
            outputs=prefixed[0] if prefixed else None,
            passes=passes,
            relative_cost=prefixed[1] if prefixed else dense_model.relative_cost(spec.policy),
        )
        if evaluation.divergence is None:
            raise TrialError("the divergence from the dense model is missing")
        return Measurement(
            score=evaluation.score,
            loss=evaluation.divergence,
            latency_ms=self.predict_ms(spec.policy),
            latency_source=self.latency_source,
            **dense_model.sizes(spec.policy),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluatorFactory:
    """Builds the evaluator of a run in a worker, from the task's specification and files of the run folder alone.

    `files` are the contents of those files, for a worker that may not see the folder; see `packed`.
    """

    task: str
    model: str | None
    data_dir: str | None
    run_dir: str
    threads: int = 1
    schedule: str = "one-shot"
    files: Mapping[str, bytes] | None = None

    def packed(self) -> EvaluatorFactory:
        """Return a factory for other hosts, which holds dense weights, channel order and latency table itself."""
        folder = RunFolder(Path(self.run_dir))
        needed = [folder.dense, folder.order]
        optional = (folder.table, folder.dense_latency, folder.recipe, folder.form)
        needed += [path for path in optional if path.exists()]
        return replace(self, files={path.name: path.read_bytes() for path in needed})

    def __call__(self) -> Evaluator:
        """Load task, dense weights, channel order and latency table; analyse the model."""
        torch.set_num_threads(self.threads)
        if self.files is None:
            return self._evaluator(RunFolder(Path(self.run_dir)))
        with TemporaryFolder("worker") as here:
            for name, content in self.files.items():
                (here / name).write_bytes(content)
            return self._evaluator(RunFolder(here))

    def _evaluator(self, folder: RunFolder) -> Evaluator:
        task = load_task(self.task, self.model, Path(self.data_dir) if self.data_dir else None)
        dense = load_dense(task, folder.dense)
        structure = analyze(dense, task.example_inputs, task.outputs)
        known = folder.table.exists()
        table = LatencyTable.load(folder.table) if known else StandInTable.load(folder.dense_latency)
        predictor = table.predictor(structure)
        dense_model = DenseModel.open(task, dense, structure, folder)
        return Evaluator(
            dense_model=dense_model,
            predict_ms=lambda policy: float(predictor.predict([policy])[0]),
            latency_source="predicted" if known else "none",
            schedule=self.schedule,
        )
