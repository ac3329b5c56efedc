"""Static int8 quantization of ONNX models (QDQ), for targets that deploy it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autoprune.device.timing import Feeds
from autoprune.errors import StructureError
from autoprune.temporary import TemporaryFolder


def quantized(
    model: onnx.ModelProto | Path, *calibration: Feeds, seven_bits: bool = False, per_channel: bool = False
) -> onnx.ModelProto:
    """`model` (or the file of one) with int8 weights and activations, calibrated on the given inputs.

    Every tensor has one scale, or, `per_channel`, every output channel of a weight. Weights have 8 bits, or 7 (see
    `adds_in_16_bits`), and keep their state-dict names with the suffix `_quantized`. Raises `StructureError` with the
    reason.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = onnx.load(str(model)) if isinstance(model, Path) else model
    names = [entry.name for entry in model.graph.input]
    copied = onnx.ModelProto()  # the quantizer moves the weights of its argument to a file that it deletes
    copied.CopyFrom(model)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = (dict(zip(names, f, strict=True)) for f in calibration)

        def get_next(self) -> Any:
            return next(self._batches, None)

    with TemporaryFolder("int8") as folder:
        path = folder / "int8.onnx"
        level = logging.root.level
        try:
            logging.root.setLevel(logging.ERROR)
            quantize_static(
                copied,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=per_channel,
                reduce_range=seven_bits,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StructureError(f"the model cannot be quantized to int8: {reason}") from error
        finally:
            logging.root.setLevel(level)
        return onnx.load(str(path))
