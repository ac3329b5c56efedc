"""A small kit whose models are no models, and what a device could have returned for it: valid, or edited."""

import copy
import json

import numpy as np
import pytest

from autoprune.device.kit import kit_bytes, kit_manifest, parse_results
from autoprune.device.measure import Protocol
from autoprune.errors import KitError

PROTOCOL = Protocol(repeats=4, reference_samples=2, block=2, retries=2)
FEEDS = [np.arange(6, dtype=np.float32).reshape(1, 6)]
TIMED, PROFILED = (3, 0, 2), (1, 0)
TARGET = {
    "provider": "CPUExecutionProvider",
    "threads": 2,
    "runtime": "onnxruntime",
    "runtime_version": "1.19.2",
    "cpu": "Cortex-A76",
    "isa": ["asimd", "asimddp"],
    "accelerator": "",
}


def made(**changed):
    given = {
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "protocol": PROTOCOL,
        "timed": TIMED,
        "profiled": PROFILED,
        "origin": {"seed": 3},
    } | changed
    models = [f"model {i}".encode() for i in range(4)]
    return kit_bytes(models, b"reference", FEEDS, **given)


CONTENT = made()
MANIFEST = kit_manifest(CONTENT, "kit")


def valid():
    """What a device could have returned for the kit."""
    rng = np.random.default_rng(0)
    name = "{:04d}.onnx".format
    jobs = [
        {"job": i, "kind": "nodes", "models": [name(m)], "kernels": ["conv", "gemm"], "ms": rng.uniform(0, 1, (5, 2))}
        for i, m in enumerate(PROFILED)
    ]
    for number, block in enumerate((TIMED[:2], TIMED[2:])):
        samples = {"samples_ms": rng.uniform(1, 2, (len(block), 4)), "reference_ms": rng.uniform(1, 2, 8)}
        jobs.append({"job": 2 + number, "kind": "block", "models": [name(m) for m in block], "repeated": 1} | samples)
    return json.loads(
        json.dumps(
            {"schema": 1, "kit": MANIFEST["kit"], "target": TARGET, "jobs": jobs}, default=lambda array: array.tolist()
        )
    )


VALID = valid()


def parsed(edit=lambda document: None):
    document = copy.deepcopy(VALID)
    edit(document)
    return parse_results(document, MANIFEST, "results.json")


def refused(edit, match):
    with pytest.raises(KitError, match=match) as caught:
        parsed(edit)
    assert "results.json" in str(caught.value)
