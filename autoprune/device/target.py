"""The device that is measured, and the fingerprint that tells two devices apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autoprune.device.address import Address, split_address
from autoprune.errors import UsageError, unknown_name
from autoprune.records import digest_of

Precision = Literal["fp32", "int8"]

_SUMS_IN_32_BITS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
"""Instructions for products of int8 numbers that are added in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime on a device with everything pinned that changes a latency.

    `address` (none for this host) says how to reach the device; it is no part of the fingerprint.
    """

    name: str
    provider: str
    threads: int
    batch: int
    precision: str
    runtime: str
    runtime_version: str
    cpu: str
    isa: tuple[str, ...]
    accelerator: str = ""
    address: Address | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise UsageError(f"a target needs threads and batch of 1 or more; got {self.threads} and {self.batch}")

    @property
    def treats_layers(self) -> bool:
        """Whether single layers can be treated: the target runs ONNX files, and does not quantize them as a whole."""
        return self.runtime == "onnxruntime" and self.precision == "fp32"

    def require_treated_layers(self) -> None:
        """Raise `UsageError` unless single layers can be treated."""
        if not self.treats_layers:
            raise UsageError(
                f"layers with a precision of their own need ONNX Runtime and a target in fp32; got {self.name}, which "
                f"runs {self.runtime} in {self.precision}. Leave out --precision, choose another --target, or search "
                "widths alone (--space widths)"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON value of all fields but `address`, and their `digest`; equal digests: comparable latencies."""
        fields = asdict(self) | {"isa": list(self.isa)}
        del fields["address"]
        return fields | {"digest": digest_of(fields)}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of target: what runs the model, where, and what it is for."""

    runtime: Literal["onnxruntime", "torch"]
    provider: str
    summary: str
    precisions: tuple[str, ...] = ("fp32",)


TARGETS: Mapping[str, Kind] = {
    "ort-cpu": Kind(
        runtime="onnxruntime",
        provider="CPUExecutionProvider",
        summary="ONNX Runtime on the CPU, fp32 or int8",
        precisions=("fp32", "int8"),
    ),
    "ort-cuda": Kind(runtime="onnxruntime", provider="CUDAExecutionProvider", summary="ONNX Runtime with CUDA"),
    "ort-tensorrt": Kind(
        runtime="onnxruntime", provider="TensorrtExecutionProvider", summary="ONNX Runtime with TensorRT"
    ),
    "ort-openvino": Kind(
        runtime="onnxruntime", provider="OpenVINOExecutionProvider", summary="ONNX Runtime with OpenVINO"
    ),
    "torch-cpu": Kind(runtime="torch", provider="cpu", summary="PyTorch on the CPU"),
    "torch-cpu-compiled": Kind(runtime="torch", provider="cpu", summary="PyTorch on the CPU, torch.compile"),
    "torch-cuda": Kind(runtime="torch", provider="cuda", summary="PyTorch with CUDA"),
    "torch-cuda-compiled": Kind(runtime="torch", provider="cuda", summary="PyTorch with CUDA, torch.compile"),
}


def adds_in_16_bits(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a CPU adds two products of an int8 layer in 16 bits, which weights of 8 bits overflow.

    x86 does, unless it has instructions for such sums (VNNI or AMX).

    Args:
        fingerprint: of a target, or a part of one with its `isa`.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "Data type selection".

    Example:
        >>> adds_in_16_bits({"isa": ["avx2", "fma"]}), adds_in_16_bits({"isa": ["avx2", "avx_vnni"]})
        (True, False)
    """
    isa = frozenset(fingerprint["isa"])
    return "avx2" in isa and not isa & _SUMS_IN_32_BITS


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Spell out in what two fingerprints differ, one phrase per field; empty when they are equal."""
    keys = sorted((mine.keys() | other.keys()) - {"digest"})
    return [f"{k}: {mine.get(k)!r} here, {other.get(k)!r} there" for k in keys if mine.get(k) != other.get(k)]


def check_target(name: str, precision: str = "fp32") -> Kind:
    """The kind that a name stands for (`ssh://` names stand for the kind on the other host).

    Raises `UsageError` for an unknown name, a malformed address or a precision that the kind does not have.
    """
    name = split_address(name)[0]
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    kind = TARGETS[name]
    if precision not in kind.precisions:
        raise UsageError(f"{name} measures {' and '.join(kind.precisions)}; got precision {precision!r}")
    return kind


def target_of(
    fingerprint: Mapping[str, Any], *, name: str, batch: int, precision: str, address: Address | None = None
) -> Target:
    """A target from the fingerprint that `measure.py` printed on its device."""
    return Target(
        name=name,
        batch=batch,
        precision=precision,
        address=address,
        **{**fingerprint, "isa": tuple(fingerprint["isa"])},
    )
