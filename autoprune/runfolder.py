"""The run folder: the only file that knows its file names. Writes are atomic, JSON and YAML carry a schema version.

run.yaml                resolved configuration
manifest.json           digest of every file that the run made, and of those that it was made from
environment.json        versions, host
dense.safetensors       weights of the dense model
order.json              channels of each unit, most important first
finetune_recipe.json    how pruned models are trained, found by a test where the task has no recipe for that
measured.json           latencies of candidates as shares of the dense model's
sensitivity.json        loss of every unit at each level with all others full, and which of it was measured
latency_table.json      the table that predicted every latency; dense_latency.json where no budget limits it
latency_parts.json      what the table says about the model: staircases of units, predicted time of each layer
latency_table.samples.jsonl  measurements of a table in the making, gone when it is written
study.db                Optuna studies, one for each fidelity; or study.json, which says where they are
effort.json             what the search was planned to spend, to end within a limit of time
progress.json           stage, seconds spent, and how long the search will still take
front.json              the result
models/<digest>/        policy.json, weights.safetensors, int8.safetensors, model.onnx, model.int8.onnx, metrics.json
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoprune.config_file import read_yaml
from autoprune.errors import ConfigError, RunFolderError
from autoprune.files import parsed_json, remove_torn, require_plain, write_atomic
from autoprune.lease import held

SCHEMA = 1


@dataclass(frozen=True)
class ModelFolder:
    """Files of one fine-tuned model."""

    path: Path

    @property
    def policy(self) -> Path:
        """Widths and kept channels."""
        return self.path / "policy.json"

    @property
    def weights(self) -> Path:
        """Fine-tuned weights."""
        return self.path / "weights.safetensors"

    @property
    def int8(self) -> Path:
        """Ranges and rounded weights of int8 layers."""
        return self.path / "int8.safetensors"

    @property
    def onnx(self) -> Path:
        """Exported model."""
        return self.path / "model.onnx"

    @property
    def metrics(self) -> Path:
        """Scores, latency and verification."""
        return self.path / "metrics.json"


def int8_beside(onnx: Path) -> Path:
    """Return the file that holds the int8 form of an ONNX model."""
    return onnx.with_suffix(".int8.onnx")


def samples_beside(table: Path) -> Path:
    """Return the file that holds the measurements of a latency table in the making."""
    return table.with_suffix(".samples.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """Paths and atomic files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "run.yaml"

    @property
    def manifest(self) -> Path:
        """Digests of the files that the run wrote, and what each was made from."""
        return self.path / "manifest.json"

    @property
    def environment(self) -> Path:
        """Versions and host."""
        return self.path / "environment.json"

    @property
    def dense(self) -> Path:
        """Weights of the dense model."""
        return self.path / "dense.safetensors"

    @property
    def dense_onnx(self) -> Path:
        """Dense model, exported for measuring."""
        return self.path / "dense.onnx"

    @property
    def order(self) -> Path:
        """Channels of each unit, most important first."""
        return self.path / "order.json"

    @property
    def recipe(self) -> Path:
        """Recipe of fine-tunings that a test found, with the results of the test."""
        return self.path / "finetune_recipe.json"

    @property
    def form(self) -> Path:
        """Form of the pruned models: the user's own classes or graph modules, and why."""
        return self.path / "form.json"

    @property
    def sensitivity(self) -> Path:
        """Divergence of every unit at every level."""
        return self.path / "sensitivity.json"

    @property
    def measured(self) -> Path:
        """Measured latencies of candidates, as shares of the dense model's."""
        return self.path / "measured.json"

    @property
    def effort(self) -> Path:
        """Trials and fidelities that were planned for a limit of time."""
        return self.path / "effort.json"

    @property
    def progress(self) -> Path:
        """Stage, seconds spent and left, as the search noted them last."""
        return self.path / "progress.json"

    @property
    def table(self) -> Path:
        """Latency table."""
        return self.path / "latency_table.json"

    @property
    def latency_parts(self) -> Path:
        """Staircases of units, and the predicted time of each layer in the dense model and in those of the front."""
        return self.path / "latency_parts.json"

    @property
    def dense_latency(self) -> Path:
        """Latency of the dense model, where no budget limits latency and there is no table."""
        return self.path / "dense_latency.json"

    @property
    def study(self) -> Path:
        """Optuna database."""
        return self.path / "study.db"

    @property
    def shared_study(self) -> Path:
        """Where the studies of the run are kept, when that is not `study.db`."""
        return self.path / "study.json"

    @property
    def has_study(self) -> bool:
        """Whether the search has begun."""
        return self.study.exists() or self.shared_study.exists()

    @property
    def has_results(self) -> bool:
        """Whether policies were scored and their results were written."""
        return self.sensitivity.exists() or self.front.exists()

    @property
    def front(self) -> Path:
        """The result."""
        return self.path / "front.json"

    @property
    def lease(self) -> Path:
        """Lease of the process that works on the run."""
        return self.path / ".lock"

    @property
    def report(self) -> Path:
        """Default place of the HTML report."""
        return self.path / "report.html"

    def model(self, digest: str) -> ModelFolder:
        """Return the files of the model with this policy digest (the folder may not exist yet)."""
        return ModelFolder(self.path / "models" / digest)

    def create(self) -> None:
        """Make the folder; `RunFolderError` when it cannot be written or its path is a file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)  # weights, data of the task in reports: nobody else's
            (self.path / "models").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
            cause = getattr(error, "strerror", None) or error
            raise RunFolderError(
                f"the run folder {self.path} cannot be written: {cause}. Choose another --run-dir."
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one controller; a second one gets a `RunFolderError` that names the first."""
        with held(self.lease):
            remove_torn(self.path)
            yield

    def write_shared_study(self, storage: str, run_id: str) -> None:
        """Note that the studies of the run are kept elsewhere."""
        write_json(self.shared_study, {"storage": storage, "run_id": run_id})

    def read_config(self) -> dict[str, Any] | None:
        """Return the stored configuration, or `None` for a new folder; `RunFolderError` for another schema version.

        Once the folder has a latency table of its own, the path of the table that the run was given is left out.
        """
        try:
            if not self.config.exists():
                return None
            value = read_yaml(self.config)
        except (OSError, ConfigError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunFolderError(f"{self.config} cannot be read: {reason}. Choose another --run-dir.") from error
        _check_schema(self.config, value)
        del value["schema"]
        if self.table.exists():
            value.pop("table", None)
        return value

    def write_config(self, value: dict[str, Any]) -> None:
        """Store the resolved configuration."""
        write_atomic(self.config, yaml.safe_dump({"schema": SCHEMA} | value, sort_keys=False).encode())


def _check_schema(path: Path, value: Any) -> None:
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise RunFolderError(
            f"{path} has schema {schema!r}; this version of autoprune reads {SCHEMA}. "
            "Use the version that wrote it, or choose another --run-dir."
        )


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object of a run.

    Args:
        path: the file.
        *keys: keys that the object must have.

    Raises:
        RunFolderError: when the file is absent, torn, of another schema version, or lacks a key.
    """
    try:
        if path.exists() and not path.is_file():
            require_plain(path)
        value = parsed_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(f"{path} does not exist. Run `autoprune search --run-dir {path.parent}` first.") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {error}. Delete it and run `autoprune search` on its run folder again."
        ) from error
    _check_schema(path, value)
    absent = [key for key in keys if key not in value]
    if absent:
        raise RunFolderError(
            f"{path} has no {absent[0]!r}. Delete it and run `autoprune search` on its run folder again."
        )
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the schema version, atomically."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return the content of a JSON file with the schema version."""
    return (json.dumps({"schema": SCHEMA} | value, indent=1) + "\n").encode()
