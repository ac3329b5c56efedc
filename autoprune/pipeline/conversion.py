"""Files of a model in other formats than ONNX: written, and proven equal to PyTorch before they take their place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import StructureError
from autoprune.export.formats import PACKED
from autoprune.pipeline.file_names import FileNames, Inputs
from autoprune.runfolder import write_atomic
from autoprune.temporary import TemporaryFolder

if TYPE_CHECKING:  # a copy of an ONNX file takes no torch
    from torch import nn

    from autoprune.export.programs import Runner
    from autoprune.pipeline.run import Candidate
    from autoprune.structure.input_sizes import InputSizes


def convert(
    candidate: Candidate, format: str, path: Path, names: FileNames, described: Inputs, *, int8: bool, limit: float
) -> float:
    """Write a file of another format than ONNX, compare it with PyTorch, and only then move it into its place.

    Args:
        candidate: the model.
        format: a key of `autoprune.export.formats.FORMATS`.
        path: file to write.
        names: of its inputs and outputs.
        described: the inputs of the model.
        int8: whether some of its layers are in int8.
        limit: largest output difference that is allowed, relative to the largest output.

    Returns:
        The largest output difference, relative to the largest output.

    Raises:
        StructureError: when PyTorch or OpenVINO cannot make the file.
        VerificationError: when it computes something else; no file is left then.
    """
    from autoprune.export.verify import output_difference
    from autoprune.pipeline.verification import real_inputs
    from autoprune.structure.input_sizes import at_second

    inputs = real_inputs(candidate.run.open_task())
    with TemporaryFolder("delivery") as folder:
        made = folder / path.name
        model, sizes = _written(candidate, format, made, int8, names, described)
        second = None if sizes is None else at_second(sizes, [x[:2] for x in inputs])
        run = _runner(candidate, format, made)
        difference = output_difference(model, run, inputs, source=path.name, limit=limit, second=second)
        for file in sorted(folder.iterdir()):  # weights before the file that names them
            write_atomic(path.with_name(file.name), file.read_bytes())
    return difference


def _runner(candidate: Candidate, format: str, path: Path) -> Runner:
    from autoprune.export.programs import runner_of, runner_of_module
    from autoprune.export.weights import load

    if format != PACKED:
        return runner_of(format, path)
    return runner_of_module(load(candidate.run.open_task().build_model, path))


def _written(
    candidate: Candidate, format: str, path: Path, int8: bool, names: FileNames, described: Inputs
) -> tuple[nn.Module, InputSizes | None]:
    """Write a file; return the model that it must equal, and the sizes besides the batch that the file leaves free."""
    from autoprune.export.onnx_file import OnnxModule
    from autoprune.export.programs import write_openvino, write_pt2, write_torchscript
    from autoprune.export.weights import save, with_rounded_weights
    from autoprune.structure import GraphModel

    if format == PACKED:
        saved = candidate.model()
        save(saved, path, rounded=True)
        return with_rounded_weights(saved), None
    inputs, model = candidate.run.open_task().example_inputs, candidate.model(native=False)
    assert isinstance(model, GraphModel)
    if format == "openvino":
        onnx = path.with_suffix(".onnx")
        onnx.write_bytes(names.onnx_file(candidate.onnx_path, described))
        write_openvino(onnx, path)
        onnx.unlink()
        if candidate.record.policy.is_rounded:
            return candidate.model(quantized=True), None
        # A model that is quantized as a whole has no equal in PyTorch.
        return (OnnxModule(candidate.onnx_path, model) if int8 else model), None
    named = names.in_pytorch(candidate.onnx_path, described)
    if format == "pt2":
        return model, write_pt2(model, inputs, path, **named)
    try:
        own = candidate.model(native=True)
    except StructureError as error:
        raise StructureError(
            f"TorchScript is traced from a model of your own classes, and this one has none: {error} Export pt2"
        ) from error
    write_torchscript(own, inputs, path, **named)
    return model, None
