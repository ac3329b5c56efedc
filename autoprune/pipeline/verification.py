"""From a fine-tuned policy to a proven model: exported, equal to PyTorch, timed against budget and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autoprune.budgets import Budget
from autoprune.device.timing import Model, Timings
from autoprune.errors import AutopruneError, RunFolderError
from autoprune.evaluation import DenseModel
from autoprune.export.formats import INT8_LIMIT
from autoprune.export.onnx_file import OnnxModule
from autoprune.export.verify import parity
from autoprune.files import digest_of_file
from autoprune.manifest import Manifest
from autoprune.onnxgraph.axes import dynamic_axes
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.profiling.table_check import CLOCK_TOLERANCE
from autoprune.quantization.numbers import Quantization
from autoprune.records import Policy
from autoprune.run_documents import read_metrics
from autoprune.runfolder import RunFolder, json_bytes
from autoprune.structure import GraphModel
from autoprune.task.base import Task
from autoprune.task.batches import length, sample_rows, take
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.trials import FrontModel

_PARITY_EXAMPLES = 64
_SURPRISE = 0.03
"""Relative difference to what was measured or predicted before, above which a latency is measured again."""

_FRONT_KEYS = ("score", "test_score", "latency_ms_predicted", "latency_ms_measured", "latency_ratio")


def load_model(dense_model: DenseModel, folder: RunFolder, policy: Policy) -> GraphModel:
    """Return the fine-tuned model of a policy, in evaluation mode.

    Raises:
        RunFolderError: when its weights are absent, damaged or of another policy.
    """
    path = folder.model(policy.digest()).weights
    Manifest(folder).require(path)
    if not path.exists():
        raise RunFolderError(f"there is no fine-tuned model {policy.digest()} in {folder.path}; run the search again")
    model = dense_model.with_empty_factors(dense_model.cut(policy).shrink(prove=False), policy)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Run the search again: it makes the file again") from error
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise RunFolderError(f"{path} does not fit policy {policy.digest()}: names or shapes differ")
    model.load_state_dict(weights)
    return model.eval()


def load_twin(dense_model: DenseModel, folder: RunFolder, policy: Policy) -> GraphModel:
    """Return the fine-tuned model of a policy as it is deployed: with its int8 layers, in evaluation mode.

    Raises:
        RunFolderError: when its weights, or the numbers of its int8 layers, are absent or damaged.
    """
    model = load_model(dense_model, folder, policy)
    if not policy.is_rounded:
        return model
    return dense_model.twin(model, Quantization.load(folder.model(policy.digest()).int8))


def whole(path: Path) -> bool:
    """Return whether a weight file is there and not torn."""
    try:
        return bool(load_file(path))
    except (SafetensorError, OSError):
        return False


def verify_model(
    policy: Policy, budget: str | None, strategy: str, costs: CostModel, deployment: Deployment
) -> FrontModel:
    """Export a fine-tuned model, prove it equal on real inputs, measure it beside the dense model, score it.

    The metrics are kept in `metrics.json`: a model with the very weights that were verified before is not measured
    again. Milliseconds are on the clock of the latency table: the ratio to the dense model, measured in the same
    minute, times the dense latency of the table.

    Args:
        policy: names the model.
        budget: the budget that it was chosen for, as written.
        strategy: the strategy that proposed it.
        costs: predicts its latency, and judges the budget.
        deployment: exports and measures it.

    Raises:
        VerificationError: when the exported model computes something else.
        RunFolderError: when there are no fine-tuned weights.
    """
    folder = deployment.folder
    files = folder.model(policy.digest())
    if not files.weights.exists():
        raise RunFolderError(f"there is no fine-tuned model {policy.digest()} in {folder.path}; run the search again")
    metrics = _proven_metrics(policy, deployment)
    if metrics is None:
        metrics = _verified(policy, costs, deployment)
        metrics["weights_sha256"] = digest_of_file(files.weights)
        sources = [files.weights, deployment.shipped(files.onnx, policy)]
        Manifest(folder).write_json(files.metrics, metrics, sources=sources)
    return FrontModel(
        digest=policy.digest(),
        policy=policy,
        **{key: metrics[key] for key in _FRONT_KEYS},
        **deployment.dense_model.sizes(policy),
        fidelity="full",
        strategy=strategy,
        budget=budget,
        meets_budget=costs.meets(budget, policy, metrics["latency_ratio"]) if budget else None,
        onnx=str(deployment.shipped(files.onnx, policy).relative_to(folder.path)),
    )


def _proven_metrics(policy: Policy, deployment: Deployment) -> dict[str, Any] | None:
    """Return the stored metrics of a model whose weights and ONNX file are those that were verified, or `None`."""
    folder, files = deployment.folder, deployment.folder.model(policy.digest())
    shipped = deployment.shipped(files.onnx, policy)
    if not all(path.exists() for path in (files.metrics, files.onnx, shipped)):
        return None
    try:
        metrics = read_metrics(folder, policy.digest())
    except RunFolderError:
        return None
    verified = {"weights_sha256": files.weights, "onnx_sha256": shipped}
    if any(metrics.get(key) != digest_of_file(path) for key, path in verified.items()):
        return None
    _write_policy(policy, deployment)
    return metrics


def _write_policy(policy: Policy, deployment: Deployment) -> None:
    """Write `policy.json`, unless the file that is there holds the same."""
    path = deployment.folder.model(policy.digest()).policy
    kept = {name: indices.tolist() for name, indices in deployment.dense_model.cut(policy).kept_channels.items()}
    content = json_bytes(policy.to_json() | {"digest": policy.digest(), "kept": kept})
    if not path.exists() or path.read_bytes() != content:
        Manifest(deployment.folder).write(path, content, sources=[deployment.folder.order])


def _verified(policy: Policy, costs: CostModel, deployment: Deployment) -> dict[str, Any]:
    dense_model, files = deployment.dense_model, deployment.folder.model(policy.digest())
    task = dense_model.task
    model = load_model(dense_model, deployment.folder, policy)
    _write_policy(policy, deployment)
    numbers = dense_model.quantization(model, policy) if policy.is_rounded else None
    target_model = deployment.export(model, files.onnx, policy, numbers)
    difference = parity(model, files.onnx, real_inputs(task))
    shipped, of_int8 = deployment.shipped(files.onnx, policy), {}
    # A quantized model scores differently, and it is the one that will be deployed.
    scored = model if shipped == files.onnx else OnnxModule(shipped, model)
    if numbers is not None:
        numbers.save(files.int8)
        of_int8 = _agreement(dense_model.twin(model, numbers), shipped, scored, task)
    made = [path for path in (files.int8, files.onnx, shipped) if path.exists()]
    Manifest(deployment.folder).record(*dict.fromkeys(made), sources=[files.weights])
    return {
        "score": evaluate(scored, task, task.val_set, dense_outputs=dense_model.dense_outputs).score,
        "test_score": score_on_test(scored, dense_model),
        "metric": task.metric_name,
        "onnx_relative_difference": difference,
        **of_int8,
        "dynamic_shapes": dynamic_axes(files.onnx),
        "inputs": described_inputs(model, task),
        "onnx_sha256": digest_of_file(shipped),
        **_latencies(policy, target_model, costs, deployment),
        **dense_model.sizes(policy),
    }


def _agreement(twin: GraphModel, onnx: Path, scored: torch.nn.Module, task: Task) -> dict[str, float]:
    """Return how well the twin of int8 layers, which the search scored, agrees with their file.

    Raises:
        VerificationError: when the file computes something else.
    """
    agreement = {"int8_relative_difference": parity(twin, onnx, real_inputs(task), limit=INT8_LIMIT)}
    if task.classifies:
        classes = [predict_outputs(model, task, task.val_set).argmax(1) for model in (twin, scored)]
        agreement["int8_same_predictions"] = float((classes[0] == classes[1]).float().mean())
    return agreement


def _latencies(policy: Policy, target_model: Model, costs: CostModel, deployment: Deployment) -> dict[str, Any]:
    """Return predicted and measured latency; nothing is measured for a table of another device."""
    if not costs.knows_latency:
        return _measured_once(target_model, costs, deployment)
    prediction = costs.predictor.predict_with_sd([policy])
    predicted_ms, sd_ms = float(prediction.latency_ms[0]), float(prediction.sd_ms[0])
    predicted = {"latency_ms_predicted": predicted_ms, "latency_ms_predicted_sd": sd_ms}
    if deployment.foreign:
        ratio = predicted_ms / costs.dense_ms
        return predicted | {"latency_ms_measured": None, "latency_ratio": ratio, "prediction_error": None}
    expected = deployment.measured_ratios().get(policy.digest(), predicted_ms / costs.dense_ms)
    timings = _timed(target_model, deployment, expected)
    ratio = timings.ratios[0]
    return predicted | {
        "latency_ms_measured": ratio * costs.dense_ms,
        "latency_ratio": ratio,
        "prediction_error": predicted_ms / (ratio * costs.dense_ms) - 1,
        "samples": {"model": timings.samples[0].to_json(), "dense": timings.reference.to_json()},
    }


def _timed(target_model: Model, deployment: Deployment, expected: float) -> Timings:
    """Time a model. Where its ratio is far from what it was before, the middle one of three measurements counts.

    The same graph was timed as a candidate, with other weights: what differs is a moment in which the host was slow.
    """
    timings = [deployment.timings([target_model])]
    if abs(timings[0].ratios[0] / expected - 1) > _SURPRISE:
        timings += [deployment.timings([target_model]) for _ in range(2)]
    return sorted(timings, key=lambda each: each.ratios[0])[len(timings) // 2]


def _measured_once(target_model: Model, costs: CostModel, deployment: Deployment) -> dict[str, Any]:
    """Return the measured latency of a model of which none was predicted, because no budget limits it."""
    timings = deployment.timings([target_model])
    return {
        "latency_ms_predicted": None,
        "latency_ms_measured": timings.ratios[0] * costs.dense_ms,
        "latency_ratio": timings.ratios[0],
        "prediction_error": None,
        "samples": {"model": timings.samples[0].to_json(), "dense": timings.reference.to_json()},
    }


def metrics_of(folder: RunFolder, models: Sequence[FrontModel]) -> list[dict[str, Any]]:
    """Return the stored metrics of verified models."""
    return [read_metrics(folder, model.digest) for model in models]


def clock_notes(budgets: Sequence[str], dense_ms: float, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a warning where budgets in milliseconds were met on the table's clock, which today's is not.

    Args:
        budgets: as written.
        dense_ms: latency of the dense model in the table.
        metrics: of the verified models; those with `samples` say what the dense model took beside them.
    """
    bounds = [bound for text in budgets for bound in Budget.parse(text).bounds]
    if not any(bound.cost == "latency" and bound.unit != "%" for bound in bounds):
        return []
    times_ms = [entry["samples"]["dense"]["median_ms"] for entry in metrics if entry.get("samples")]
    now_ms = float(np.median(times_ms)) if times_ms else dense_ms
    change = now_ms / dense_ms - 1
    if abs(change) <= CLOCK_TOLERANCE:
        return []
    return [
        f"the dense model took {now_ms:.4g} ms beside these models, {change:+.0%} against the latency table, on whose "
        "clock budgets in milliseconds are judged. If the device was not busy, `autoprune profile` again"
    ]


def described_inputs(model: GraphModel, task: Task) -> list[dict[str, Any]]:
    """Return `name`, `dtype` and `shape` of every input of a model, for one example."""
    return [
        {"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x[:1].shape if x.dim() else x.shape)}
        for name, x in zip(model.input_names, task.example_inputs, strict=True)
    ]


def real_inputs(task: Task) -> tuple[torch.Tensor, ...]:
    """Return the inputs of 64 validation examples, batch dimension first."""
    rows = sample_rows(length(task.val_set), _PARITY_EXAMPLES)
    return task.split(take(task.val_set, rows))[0]


def score_on_test(model: torch.nn.Module, dense_model: DenseModel) -> float:
    """Return the score of a model on the test data, which no other stage looks at.

    Raises:
        TrialError: when the score is not finite.
    """
    task, outputs = dense_model.task, None
    try:
        if task.metric is None and not task.classifies:
            outputs = predict_outputs(dense_model.module, task, task.test_set)
        return evaluate(model, task, task.test_set, dense_outputs=outputs).score
    except AutopruneError as error:
        raise type(error)(f"on the test data: {error}") from error
