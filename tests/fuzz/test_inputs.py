"""Whatever a file, an option or a device says, it is read or refused by one message: never a traceback."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import autoprune
from autoprune.budgets import parse_budget
from autoprune.cli import main as cli
from autoprune.config import RunConfig, load_config
from autoprune.device.address import split_address
from autoprune.device.kit import kit_manifest, parse_results
from autoprune.errors import AutopruneError, PolicyError, StructureError, TaskError
from autoprune.latency.table import LatencyTable
from autoprune.lease import holder
from autoprune.manifest import Manifest
from autoprune.records import digest_of
from autoprune.run_documents import read_front, read_metrics
from autoprune.runfolder import RunFolder
from autoprune.space import load_spec
from autoprune.study.location import SharedStorage
from tests.device.kits import MANIFEST, valid
from tests.device.test_kit import repacked
from tests.fuzz.values import ODD_TEXTS, anything, changed, places

FAST, LONG = 40, 3_000
COUNTS = [FAST, pytest.param(LONG, marks=pytest.mark.slow)]
"""Inputs of each kind; the long fuzzers run with `pytest -m slow tests/fuzz`."""


def fuzz(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run a function on so many inputs; the same ones each time, so that a failure is the same, too."""

    def run(check: Callable[..., None]) -> None:
        quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
        options: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}
        settings(max_examples=count, suppress_health_check=quiet, **options)(given(**strategies)(check))()

    return run


def refused_or_read(call: Callable[[], object]) -> None:
    """Run a call; any other error than one message for the user fails the test."""
    try:
        call()
    except AutopruneError as error:
        message = str(error)
    else:
        return
    assert message
    assert len(message) < 5_000


choices = st.randoms(use_true_random=False)


@pytest.mark.parametrize("count", COUNTS)
def test_options_of_a_run(count: int) -> None:
    keys = st.sampled_from(sorted(RunConfig.model_fields)) | st.text(max_size=5)

    @fuzz(count, options=st.dictionaries(keys, anything, max_size=4))
    def _(options: dict[str, Any]) -> None:
        refused_or_read(lambda: load_config(None, options).parsed_budgets())


@pytest.mark.parametrize("count", COUNTS)
def test_settings_files(count: int, tmp_path: Path) -> None:
    file, text = tmp_path / "settings.yaml", st.text("{}[]&*!:-?|>'\"%@#,. \n\0abt019", max_size=40)
    tags = st.sampled_from(["!!int abc", "!!float x", "!!binary '#'", "!!timestamp 1", "!!set {a}", "!!omap 3", "*a"])

    @fuzz(
        count, content=text | anything.map(lambda value: yaml.safe_dump({"task": value})) | tags.map("seed: {}".format)
    )
    def _(content: str) -> None:
        file.write_bytes(content.encode(errors="surrogatepass"))
        refused_or_read(lambda: load_config(file, {}))
        refused_or_read(lambda: load_spec(file))


@pytest.mark.parametrize("count", COUNTS)
def test_budgets_addresses_and_storages(count: int) -> None:
    urls = st.sampled_from(["postgresql+psycopg://", "journal:", "ssh://", "score:", "bytes:", ""])
    rest = st.text("a1.-%$@:/?#[]=&msBk{}\0\u00e9", max_size=30) | st.sampled_from(ODD_TEXTS)

    @fuzz(count, start=urls, end=rest)
    def _(start: str, end: str) -> None:
        refused_or_read(lambda: parse_budget(start + end))
        refused_or_read(lambda: split_address(start + end))
        refused_or_read(lambda: SharedStorage(start + end, "run"))


@pytest.mark.parametrize("count", COUNTS)
def test_kits_and_their_results(count: int) -> None:
    results, manifest = valid(), {k: v for k, v in MANIFEST.items() if k != "kit"}

    @fuzz(count, other=anything, choice=choices)
    def _(other: Any, choice: random.Random) -> None:
        refused_or_read(lambda: parse_results(changed(results, other, choice), MANIFEST, "results.json"))
        edited = changed(manifest, other, choice)
        if isinstance(edited, dict):
            refused_or_read(
                lambda: parse_results(
                    results,
                    kit_manifest(repacked(edited | {"kit": digest_of(edited, length=32)}), "kit.zip"),
                    "results.json",
                )
            )


@pytest.mark.parametrize("count", COUNTS)
def test_models_that_are_loaded(count: int, tmp_path: Path) -> None:
    build = functools.partial(_net, 8)
    path = autoprune.save(autoprune.prune(build(), torch.randn(1, 4), keep=0.5), tmp_path / "small.safetensors")
    weights = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["autoprune"])

    @fuzz(count // 4, other=anything | st.just(10**30) | st.just([[0], [1, 2]]), choice=choices)
    def _(other: Any, choice: random.Random) -> None:
        edited = json.dumps(changed(about, other, choice))
        save_file(weights, path, {"autoprune": edited})
        refused_or_read(lambda: _loaded(build, path))


def _loaded(build: Callable[[], nn.Module], path: Path) -> None:
    """Load a model; weights that do not fit may be the fault of the file, all else is that of its metadata."""
    try:
        autoprune.load(build, path)
    except (PolicyError, StructureError, TaskError):
        raise
    except AutopruneError as error:
        raise AssertionError(f"{type(error).__name__} for metadata") from error


def _net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_a_run(count: int, copied: autoprune.Run) -> None:
    folder, digest = copied.folder, copied.models[0].digest
    readers: dict[Path, Callable[[RunFolder], object]] = {
        folder.front: _shown,
        folder.model(digest).metrics: lambda f: read_metrics(f, digest),
        folder.manifest: lambda f: Manifest(f).states(),
        folder.table: lambda f: LatencyTable.load(f.table),
        folder.lease: lambda f: str(holder(f.lease)),
        folder.environment: lambda f: cli.app(["status", str(f.path), "--json"], standalone_mode=False),
        folder.progress: lambda f: cli.app(["status", str(f.path)], standalone_mode=False),
    }
    content = {path: path.read_text() if path.exists() else "{}" for path in readers}
    content[folder.lease] = '{"host": "h", "pid": 1, "born": "1", "since": "now", "beat": 0}'
    folder.manifest.unlink()
    documents = {path: json.loads(text) for path, text in content.items()}
    documents[folder.table]["entries"] = documents[folder.table]["entries"][:2]
    documents[folder.table]["samples"] = documents[folder.table]["samples"][:2]

    @fuzz(count // 2, path=st.sampled_from(sorted(readers)), other=anything, choice=choices, cut=st.integers(0, 9))
    def _(path: Path, other: Any, choice: random.Random, cut: int) -> None:
        text = json.dumps(changed(documents[path], other, choice))
        path.write_text("[" * 5_000 if cut == 1 else text[: len(text) // 2] if cut == 2 else text)
        refused_or_read(lambda: readers[path](folder))
        path.write_text(content[path]) if path != folder.manifest else path.unlink()


def _shown(folder: RunFolder) -> None:
    read_front(folder)
    cli.app(["front", str(folder.path)], standalone_mode=False)
    cli.app(["pick", str(folder.path), "--knee"], standalone_mode=False)


def test_every_place_of_a_document_is_reached() -> None:
    assert places({"a": [1, {"b": 2}]}) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
