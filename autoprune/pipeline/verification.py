"""From a fine-tuned policy to a proven model: exported, equal to PyTorch, timed against budget and prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autoprune.allocation.limits import fits
from autoprune.budgets import Budget
from autoprune.device.timing import Model
from autoprune.errors import AutopruneError, RunFolderError
from autoprune.evaluation import DenseModel
from autoprune.export.onnx_file import OnnxModule
from autoprune.export.verify import parity
from autoprune.front import hypervolume, latency_of, non_dominated
from autoprune.pipeline.deployment import deployed, int8_path, measure_beside_dense
from autoprune.pipeline.prepare import Setup
from autoprune.profiling.table_check import CLOCK_TOLERANCE
from autoprune.pruning import keep_best
from autoprune.records import Policy
from autoprune.runfolder import ModelFolder, RunFolder, read_json, write_json
from autoprune.structure import GraphModel
from autoprune.task.batches import length, sample_rows, take
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.trials import FrontModel

BUDGET_TOLERANCE = 0.01
"""Share by which a measured latency may pass its budget: the noise of a re-measurement. A candidate gets none of it."""

_PARITY_EXAMPLES = 64
_HYPERVOLUME_SHARE = 0.1


def meets(setup: Setup, budget: str, policy: Policy, ratio: float, tolerance: float = BUDGET_TOLERANCE) -> bool:
    """Whether a policy meets a budget: measured latency (`ratio` of dense) within noise, all other costs exactly."""
    latency_ms = ratio * setup.table.dense_ms / (1 + tolerance)
    # A run that was called with other budgets since still has models of its first ones.
    limit = setup.limits.get(budget) or Budget.parse(budget).limit(setup.dense_costs)
    return bool(fits([latency_ms, *setup.costs([policy])[0, 1:]], limit))


def load_model(dense_model: DenseModel, folder: RunFolder, policy: Policy) -> GraphModel:
    """The fine-tuned model of a policy, in evaluation mode; `RunFolderError` when its weights are absent or wrong."""
    path = folder.model(policy.digest()).weights
    if not path.exists():
        raise RunFolderError(f"there is no fine-tuned model {policy.digest()} in {folder.path}; run the search again")
    model = dense_model.structure.shrink(policy, keep_best(dense_model.order, policy), prove=False)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Run the search again: it makes it anew") from error
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:
        raise RunFolderError(f"{path} does not fit policy {policy.digest()}: names or shapes differ")
    model.load_state_dict(weights)
    return model.eval()


def whole(path: Path) -> bool:
    """Whether a weight file is there and not torn."""
    try:
        return bool(load_file(path))
    except (SafetensorError, OSError):
        return False


def _export(setup: Setup, policy: Policy, model: GraphModel) -> tuple[ModelFolder, Model]:
    """Write `policy.json` and `model.onnx` of a fine-tuned policy; and the form that the target runs."""
    files = setup.folder.model(policy.digest())
    kept = {name: indices.tolist() for name, indices in keep_best(setup.dense_model.order, policy).items()}
    write_json(files.policy, policy.to_json() | {"digest": policy.digest(), "kept": kept})
    return files, deployed(setup, model, files.onnx)


def verify_model(setup: Setup, policy: Policy, budget: str | None, strategy: str) -> FrontModel:
    """Export, check parity on real inputs, measure beside the dense model, score on test data; kept in `metrics.json`.

    Raises `VerificationError` when the exported model computes something else. A model whose very weights were verified
    by an earlier call is not measured again. Milliseconds are on the clock of the latency table: the ratio to the dense
    model, measured in the same minute, times the table's dense latency.
    """
    files = setup.folder.model(policy.digest())
    if not files.weights.exists():
        raise RunFolderError(f"there is no fine-tuned model {policy.digest()} in {setup.folder.path}")
    weights = hashlib.sha256(files.weights.read_bytes()).hexdigest()
    found: dict[str, Any] = read_json(files.metrics) if files.metrics.exists() and files.onnx.exists() else {}
    if found.get("weights_sha256") != weights:
        found = _verified(setup, policy) | {"weights_sha256": weights}
        write_json(files.metrics, found)
    shipped = int8_path(files.onnx) if setup.target.precision == "int8" else files.onnx
    keys = ("score", "test_score", "latency_ms_predicted", "latency_ms_measured", "latency_ratio")
    return FrontModel(
        digest=policy.digest(),
        policy=policy,
        **{key: found[key] for key in keys},
        **setup.dense_model.sizes(policy),
        fidelity="full",
        strategy=strategy,
        budget=budget,
        meets_budget=meets(setup, budget, policy, found["latency_ratio"]) if budget else None,
        onnx=str(shipped.relative_to(setup.folder.path)),
    )


def _verified(setup: Setup, policy: Policy) -> dict[str, Any]:
    task, dense_model = setup.dense_model.task, setup.dense_model
    model = load_model(dense_model, setup.folder, policy)
    files, target_model = _export(setup, policy, model)
    difference = parity(model, files.onnx, real_inputs(setup))
    # A quantized model scores differently, and it is the one that will be deployed.
    scored = OnnxModule(int8_path(files.onnx)) if setup.target.precision == "int8" else model
    return {
        "score": evaluate(scored, task, task.val_set, dense_outputs=dense_model.dense_outputs).score,
        "test_score": score_on_test(setup, scored),
        "metric": task.metric_name,
        "onnx_relative_difference": difference,
        **_latencies(setup, policy, target_model),
        **dense_model.sizes(policy),
    }


def _latencies(setup: Setup, policy: Policy, target_model: Model) -> dict[str, Any]:
    """Predicted against measured; nothing is measured for a table of another device."""
    predicted = setup.predictor.predict_with_sd([policy])
    predicted_ms, sd_ms = float(predicted.latency_ms[0]), float(predicted.sd_ms[0])
    found = {"latency_ms_predicted": predicted_ms, "latency_ms_predicted_sd": sd_ms}
    if setup.foreign:
        ratio = predicted_ms / setup.table.dense_ms
        return found | {"latency_ms_measured": None, "latency_ratio": ratio, "prediction_error": None}
    timings = measure_beside_dense(setup, [target_model])
    ratio = timings.ratios[0]
    return found | {
        "latency_ms_measured": ratio * setup.table.dense_ms,
        "latency_ratio": ratio,
        "prediction_error": predicted_ms / (ratio * setup.table.dense_ms) - 1,
        "samples": {"model": timings.samples[0].to_json(), "dense": timings.reference.to_json()},
    }


def clock_notes(setup: Setup, models: Sequence[FrontModel]) -> list[str]:
    """A warning where budgets in milliseconds were met on the table's clock, which today's is not."""
    bounds = [bound for text in setup.limits for bound in Budget.parse(text).bounds]
    if not any(bound.cost == "latency" and bound.unit != "%" for bound in bounds):
        return []
    found = [read_json(setup.folder.model(model.digest).metrics).get("samples") for model in models]
    times_ms = [samples["dense"]["median_ms"] for samples in found if samples]
    now_ms = float(np.median(times_ms)) if times_ms else setup.table.dense_ms
    change = now_ms / setup.table.dense_ms - 1
    if abs(change) <= CLOCK_TOLERANCE:
        return []
    return [
        f"the dense model took {now_ms:.4g} ms beside these models, {change:+.0%} against the latency table, on whose "
        "clock budgets in milliseconds are judged. If the device was not busy, `autoprune profile` again"
    ]


def real_inputs(setup: Setup) -> tuple[torch.Tensor, ...]:
    """Inputs of a few validation examples, batch dimension first."""
    task = setup.dense_model.task
    rows = sample_rows(length(task.val_set), _PARITY_EXAMPLES)
    return task.split(take(task.val_set, rows))[0]


def score_on_test(setup: Setup, model: torch.nn.Module) -> float:
    """Score on the test data, which nothing else looks at."""
    task = setup.dense_model.task
    outputs = None
    try:
        if task.metric is None and not task.classifies:
            outputs = predict_outputs(setup.dense_model.module, task, task.test_set)
        return evaluate(model, task, task.test_set, dense_outputs=outputs).score
    except AutopruneError as error:
        raise type(error)(f"on the test data: {error}") from error


def front_document(setup: Setup, models: Sequence[FrontModel], dense_test_score: float) -> dict[str, Any]:
    """Content of `front.json`: the front, the uniform baselines, and the models that missed or are dominated."""
    # A uniform policy that no searched one beats is on the front like any other.
    met = list({m.digest: m for m in models if m.meets_budget}.values())
    mask = non_dominated([latency_of(m) for m in met], [m.score for m in met])
    front = sorted((m for m, keep in zip(met, mask, strict=True) if keep), key=latency_of)
    shown = {m.digest for m in front}
    searched = [m for m in models if m.strategy != "uniform"]
    dense = _dense_entry(setup, dense_test_score)
    reference = (dense["latency_ms_measured"], dense["score"] - _HYPERVOLUME_SHARE * abs(dense["score"]))
    area = hypervolume([latency_of(m) for m in front], [m.score for m in front], reference)
    return {
        "metric": setup.dense_model.task.metric_name,
        "dense": dense,
        "models": [to_json(m) for m in front],
        "baselines": [to_json(m) for m in models if m.strategy == "uniform"],
        "others": [to_json(m) for m in searched if m.digest not in shown],
        "hypervolume": {"value": area, "reference_latency_ms": reference[0], "reference_score": reference[1]},
        "held_out": vars(setup.table.held_out),
        "latency_table": {
            "target": dict(setup.table.target),
            "created": setup.table.created,
            "policies": setup.table.counts,
            "refits": setup.table.refits,
            "foreign": list(setup.foreign),
        },
    }


def _dense_entry(setup: Setup, test_score: float) -> dict[str, Any]:
    dense_model = setup.dense_model
    return {
        "score": setup.dense_score,
        "test_score": test_score,
        "latency_ms_measured": setup.table.dense_ms,
        **dense_model.sizes(dense_model.structure.dense_policy()),
    }


def to_json(model: FrontModel) -> dict[str, Any]:
    """One model of `front.json`."""
    return vars(model) | {"policy": dict(model.policy.widths)}


def from_json(value: dict[str, Any], space_id: str) -> FrontModel:
    """Inverse of `to_json`."""
    policy = Policy(space_id=space_id, widths=value["policy"])
    fields: dict[str, Any] = value | {"policy": policy}
    return FrontModel(**fields)
