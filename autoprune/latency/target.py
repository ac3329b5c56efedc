"""The device that is measured, and the fingerprint that tells two devices apart."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from autoprune.errors import UsageError, unknown_name
from autoprune.records import digest_of

_ISA_X86 = {"sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
_ISA_AVX512 = {"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
_ISA_ARM = {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"}
_ISA_OF_INTEREST = frozenset(_ISA_X86 | _ISA_AVX512 | _ISA_ARM)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime on a host with everything pinned that changes a latency."""

    name: str
    provider: str
    threads: int
    batch: int
    precision: str
    runtime: str
    runtime_version: str
    cpu: str
    isa: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise UsageError(f"a target needs threads and batch of 1 or more; got {self.threads} and {self.batch}")

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON value of all fields and their `digest`; equal digests mean comparable latencies."""
        fields = asdict(self) | {"isa": list(self.isa)}
        return fields | {"digest": digest_of(fields)}


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Spell out in what two fingerprints differ, one phrase per field; empty when they are equal."""
    keys = sorted((mine.keys() | other.keys()) - {"digest"})
    return [f"{k}: {mine.get(k)!r} here, {other.get(k)!r} there" for k in keys if mine.get(k) != other.get(k)]


def make_target(name: str, threads: int = 1, batch: int = 1) -> Target:
    """Describe the target `name` on this host.

    Raises `UsageError` for an unknown name (the known ones are listed) and for more threads than the host has cores.
    """
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    cores = os.cpu_count() or 1
    if threads > cores:
        raise UsageError(f"a target has at most as many threads as the host has cores; got {threads} of {cores}")
    return TARGETS[name](threads, batch)


def _ort_cpu(threads: int, batch: int) -> Target:
    cpu, isa = _host()
    return Target(
        name="ort-cpu",
        provider="CPUExecutionProvider",
        threads=threads,
        batch=batch,
        precision="fp32",
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        cpu=cpu,
        isa=isa,
    )


TARGETS: dict[str, Callable[[int, int], Target]] = {"ort-cpu": _ort_cpu}


def _host() -> tuple[str, tuple[str, ...]]:
    """Name of the CPU and its instruction sets of interest; the latter only where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    part = " ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    name = fields.get("model name") or fields.get("CPU part") or platform.machine()
    return f"{name} ({part})" if part else name, tuple(sorted(flags & _ISA_OF_INTEREST))
