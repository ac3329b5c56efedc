"""What int8 layers cost in score without training, and how well the twin agrees with ONNX Runtime.

The net is trained, cut to a share of every unit and repaired; then all its layers become int8. Printed for each share
and each way of rounding weights: scores on validation data in fp32, of the twin and of the file; the share of
predictions that the twin has in common with the file, and with fp32; how far the twin's outputs are from those in
fp32, as KL divergence of the classes and as root mean square beside the spread of the outputs; the largest difference
between the outputs of twin and file, beside the largest output; the seconds of building the twin, and of the repair.
The first line says how long rounding takes. With `--finetune`, the same after so many training examples in fp32.

    OMP_NUM_THREADS=1 python scripts/benchmarks/int8.py [--task fashion-mnist] [--model resnet20]
        [--dense weights.safetensors] [--samples 24000] [--finetune 3000] [--rounding nearest moments]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn import functional as F

from autoprune.device.measure import host
from autoprune.device.target import adds_in_16_bits
from autoprune.evaluation import DenseModel
from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.export.onnx_file import OnnxModule
from autoprune.onnxgraph.export import export_onnx, serialized
from autoprune.onnxgraph.treated import treated
from autoprune.pruning import channel_order, score_units
from autoprune.quantization.arithmetic import Arithmetic
from autoprune.quantization.grid import LARGEST_SATURATING_WEIGHT, LARGEST_WEIGHT, LEVELS, Range
from autoprune.quantization.rounding import in_grid
from autoprune.records import Policy
from autoprune.structure import GraphModel, analyze
from autoprune.task.builtin import make_task
from autoprune.training.dense import build_dense, load_dense, weights_to_bytes
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import predict_outputs
from autoprune.treatments import INT8

SHARES = (1.0, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense", type=Path, help="weights, trained and written here when they are absent")
    parser.add_argument("--samples", type=int, default=24_000, help="examples that the dense net is trained on")
    parser.add_argument("--finetune", type=int, default=0, help="examples that cut nets are trained on, in fp32")
    parser.add_argument("--rounding", nargs="+", default=["moments"], choices=["nearest", "moments"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense_model = trained_dense_model(options.task, options.model, options.dense, options.samples)
    print(_rounding_times(), flush=True)
    for share in SHARES:
        policy = _policy(dense_model, share)
        cut = dense_model.cut(policy)
        model, start = cut.shrink(prove=False), time.perf_counter()
        if share < 1:
            dense_model.repair(model, cut, SamplePasses())
        repaired_s = time.perf_counter() - start
        print(f"{share:.0%} of every unit, repair {repaired_s:.2f} s", flush=True)
        for rounding in options.rounding:
            print(f"  {rounding}: {_compared(dense_model, model, policy, rounding)}", flush=True)
        if options.finetune and share < 1:
            dense_model.finetune(model, policy, samples=options.finetune, seed=0)
            for rounding in options.rounding:
                print(
                    f"  {rounding} after {options.finetune} examples: "
                    f"{_compared(dense_model, model, policy, rounding)}",
                    flush=True,
                )


def trained_dense_model(task_name: str, model: str | None, weights: Path | None, samples: int) -> DenseModel:
    """Return the dense model of a built-in task: of a file of weights, or trained and written to that file."""
    task = make_task(task_name, model)
    if weights is None or not weights.exists():
        dense = build_dense(task)
        finetune(dense, task, recipe=task.recipe, samples=samples, seed=0)
        if weights is not None:
            weights.write_bytes(weights_to_bytes(dense))
    else:
        dense = load_dense(task, weights)
    structure = analyze(dense, task.example_inputs)
    return DenseModel(
        task=task,
        module=dense,
        structure=structure,
        order=channel_order(score_units(structure, "l2")),
        reconstruction=reconstruction_of(task, structure, 0),
        arithmetic=Arithmetic(
            largest_weight=LARGEST_SATURATING_WEIGHT if adds_in_16_bits({"isa": host()[1]}) else LARGEST_WEIGHT
        ),
    )


def _policy(dense_model: DenseModel, share: float) -> Policy:
    structure = dense_model.structure
    widths = {unit.name: max(1, int(unit.width * share)) for unit in structure.units}
    treatments = {layer.name: INT8 for layer in structure.layers if layer.allows(INT8)}
    return replace(structure.dense_policy(), widths=widths, treatments=treatments)


def _compared(dense_model: DenseModel, model: GraphModel, policy: Policy, rounding: str) -> str:
    start = time.perf_counter()
    numbers = dense_model.quantization(model, policy, quick=rounding == "nearest")
    twin, task = dense_model.twin(model, numbers), dense_model.task
    seconds = time.perf_counter() - start
    exported = export_onnx(model, task.example_inputs)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        path.write_bytes(
            serialized(treated(exported, policy.treatments, numbers.ranges, numbers.weights, numbers.arithmetic))
        )
        forms = {"fp32": model, "twin": twin, "file": OnnxModule(path, model)}
        outputs = {name: predict_outputs(form, task, task.val_set) for name, form in forms.items()}
    classes = {name: of_form.argmax(1) for name, of_form in outputs.items()}
    targets = torch.tensor([int(task.val_set[i][1]) for i in range(len(task.val_set))])  # type: ignore[arg-type]
    scores = ", ".join(f"{name} {float((c == targets).float().mean()):.4f}" for name, c in classes.items())
    same = {name: float((classes[name] == classes["twin"]).float().mean()) for name in ("file", "fp32")}
    return (
        f"{scores}; same as the file {same['file']:.2%}, as fp32 {same['fp32']:.2%}; "
        f"{_distances(outputs)}; twin {seconds:.2f} s"
    )


def _rounding_times() -> str:
    """Return the milliseconds of rounding a large tensor, by us and by PyTorch: the least of 20 runs."""
    x, grid = torch.rand(1_600_000), Range(low=0.0, high=1.0)

    def least_ms(rounding: Callable[[Tensor], Tensor]) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            rounding(x)
            times.append(1e3 * (time.perf_counter() - start))
        return min(times)

    ours = least_ms(lambda values: in_grid(values, grid.scale, grid.zero_point))
    pytorch = least_ms(
        lambda values: torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, 0, LEVELS)
    )
    return f"rounding {len(x):,} numbers: {ours:.2f} ms, fake_quantize_per_tensor_affine {pytorch:.2f} ms"


def _distances(outputs: dict[str, Tensor]) -> str:
    """Return how far the twin's outputs are from those in fp32 and from the file's."""
    fp32, twin, file = (outputs[name] for name in ("fp32", "twin", "file"))
    divergence = F.kl_div(twin.log_softmax(1), fp32.log_softmax(1), reduction="batchmean", log_target=True)
    error = float((twin - fp32).std() / (fp32 - fp32.mean(0)).std())
    apart = float((twin - file).abs().max() / file.abs().max())
    return f"divergence {float(divergence):.2e}, error {error:.4f}, from the file {apart:.4f}"


if __name__ == "__main__":
    main()
