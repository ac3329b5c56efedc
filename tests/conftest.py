from __future__ import annotations

import fcntl
import functools
import gc
import hashlib
import inspect
import math
import os
import pickle
import shutil
import signal
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch._export.utils
from hypothesis import settings
from onnxscript import values
from torch import nn
from torch.export import decomp_utils, exported_program
from torch.onnx._internal.exporter import _schemas

import autoprune
from autoprune.device import noise
from autoprune.export import onnx_file
from autoprune.latency import evidence, fitting
from autoprune.runfolder import write_atomic
from autoprune.structure import GraphModel
from autoprune.training.dense import weights_to_bytes
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny

pytest_plugins = ["tests.structure_fixtures"]

# Tests do not depend on how busy a machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SPEC = f"{Path(tiny.__file__)}:make_task"
OPTIONS = {"budgets": ["80%", "65%"], "trials": 10, "executor": "inline"}
QUICK = {"budgets": ["80%"], "trials": 2, "executor": "inline", "strategy": "uniform"}
"""A run through all stages, for tests that are not about the search."""


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Take Ctrl-C also where a shell started the tests in the background, which makes processes ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def collected_once() -> None:
    """Keep the garbage collector off the millions of objects that imports have left, and let it run rarely: a tenth of
    the test time each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Let the exporter read its 500 translations once: it does so for each model, which takes half a second; and look
    up the types in its annotations, which it evaluates 10,000 times a model, where `typing` keeps them."""
    parsed: Any = values.TracedOnnxFunction.function_ir
    composites = functools.cache(torch._export.utils._collect_all_valid_cia_ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values.TracedOnnxFunction, "function_ir", property(functools.cache(parsed.fget)))
        patch.setattr(_schemas, "op_signature_from_function", functools.cache(_schemas.op_signature_from_function))
        patch.setattr(torch._ops, "Callable", typing.Callable)
        for module in (exported_program, decomp_utils):
            patch.setattr(module, "_collect_all_valid_cia_ops", composites)
        yield


@pytest.fixture(scope="session", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Export a model once for all processes that run tests, however many come to the same weights: the exporter takes
    a second or more."""
    folder = shared_folder(tmp_path_factory) / "exports"
    folder.mkdir(exist_ok=True)
    export = onnx_file.export_onnx

    def remembered(model: nn.Module, inputs: Any, path: Any = None, **options: Any) -> onnx.ModelProto:
        computed = what_is_computed(model)
        if path is None or computed is None:
            return export(model, inputs, path, **options)
        of_inputs = [(tuple(x.shape), x.dtype) for x in inputs]
        known = (computed, of_inputs, options)
        key = hashlib.sha256(weights_to_bytes(model) + repr(known).encode()).hexdigest()
        if (folder / key).exists():
            write_atomic(path, (folder / key).read_bytes())
            return onnx.load_model(path)
        exported = export(model, inputs, path, **options)
        write_atomic(folder / key, Path(path).read_bytes())
        return exported

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "export_onnx", remembered)
        yield


def what_is_computed(model: nn.Module) -> object:
    """Return what tells models of equal weights apart: their graph, or the sources of their classes; `None`: neither is
    known."""
    if isinstance(model, GraphModel):
        return str(model.captures[False].graph), model.input_names
    try:
        return repr(model), [inspect.getsource(type(module)) for module in model.modules()]
    except (OSError, TypeError):  # a class that was made while tests run
        return None


@pytest.fixture(scope="session", autouse=True)
def fitted_once() -> Iterator[None]:
    """Fit equal evidence once: searches of one model all profile the same simulated machine."""
    fit, known = evidence.fit, dict[str, fitting.Fit]()

    def remembered(*given: Any) -> fitting.Fit:
        key = hashlib.sha256(pickle.dumps(given)).hexdigest()
        if key not in known:
            known[key] = fit(*given)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "fit", remembered)
        yield


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all processes that run tests together."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the program remembers for its user out of the home folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_verdict_on_noise() -> Iterator[None]:
    """Let profiles be made on a machine however busy it is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QUIET", "MOST"):
            patch.setattr(noise, name, math.inf)
        yield


@pytest.fixture
def verdict_on_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge noise as users see it."""
    for name, value in (("QUIET", 0.05), ("MOST", 0.15)):
        monkeypatch.setattr(noise, name, value)


@pytest.fixture
def measurer() -> SimulatedMeasurer:
    """A device that takes what it took when the finished run was made."""
    return SimulatedMeasurer()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> autoprune.Run:
    """A finished run that tests may read but not change, searched once for all processes that run tests."""
    folder = shared_folder(tmp_path_factory) / "finished" / "tiny"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "front.json").exists():
            autoprune.search(SPEC, run_dir=folder, measurer=SimulatedMeasurer(), **OPTIONS)
    return autoprune.Run.open(folder)


@pytest.fixture
def copied(finished: autoprune.Run, tmp_path: Path) -> autoprune.Run:
    """A copy of the finished run that tests may change."""
    shutil.copytree(finished.folder.path, tmp_path / "copy")
    return autoprune.Run.open(tmp_path / "copy")
