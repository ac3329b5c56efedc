"""Connecting to the device that is measured: its fingerprint, and whether it can run the target."""

from __future__ import annotations

import os

import onnxruntime
import torch

from autoprune.device.address import split_address
from autoprune.device.measure import accelerator, host
from autoprune.device.ssh import ask_fingerprint
from autoprune.device.target import Kind, Target, check_target, target_of
from autoprune.errors import UsageError


def make_target(name: str, threads: int = 1, batch: int = 1, precision: str = "fp32") -> Target:
    """Describe the target `name` on this host, or on the host of an `ssh://` name (which is asked for it).

    Raises `UsageError` for an unknown name (the known ones are listed), for more threads than the host has cores, and
    for a runtime that does not offer the provider; `LatencyError` when a remote host cannot be asked.
    """
    kind = check_target(name, precision)
    cores = os.cpu_count() or 1
    bare, address = split_address(name)
    if address:
        if kind.runtime != "onnxruntime":
            raise UsageError(f"a remote target runs ONNX Runtime; got {bare!r}")
        fingerprint = ask_fingerprint(address, kind.provider, threads)
        return target_of(fingerprint, name=bare, batch=batch, precision=precision, address=address)
    if threads > cores:
        raise UsageError(f"a target has at most as many threads as the host has cores; got {threads} of {cores}")
    _require_provider(bare, kind)
    cpu, isa = host()
    return Target(
        name=bare,
        provider=kind.provider,
        threads=threads,
        batch=batch,
        precision=precision,
        runtime=kind.runtime,
        runtime_version=onnxruntime.__version__ if kind.runtime == "onnxruntime" else torch.__version__,
        cpu=cpu,
        isa=isa,
        accelerator=accelerator() if kind.provider not in ("cpu", "CPUExecutionProvider") else "",
    )


def _require_provider(name: str, kind: Kind) -> None:
    if kind.runtime == "torch":
        if kind.provider == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"{name} needs a CUDA device that torch {torch.__version__} can use; there is none here")
        return
    have = onnxruntime.get_available_providers()
    if kind.provider not in have:
        raise UsageError(
            f"{name} needs {kind.provider}, which this onnxruntime {onnxruntime.__version__} does not offer "
            f"(it has {', '.join(have)}). Install a build that has it, or measure on the device itself: "
            "`autoprune profile kit`, or --target ssh://user@host."
        )
