"""A run and its models, as Python users hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.budgets import Limit
from autoprune.config import OBJECT_TASK, RunConfig, load_config
from autoprune.errors import RunFolderError, UsageError
from autoprune.front import latency_of, pick
from autoprune.manifest import Manifest
from autoprune.pipeline.document import from_json
from autoprune.pipeline.picking import cost_limit, least_score
from autoprune.run_documents import read_front
from autoprune.runfolder import RunFolder
from autoprune.trials import FrontModel

if TYPE_CHECKING:  # looking at a finished run takes neither torch nor pandas
    import pandas as pd
    from torch import nn

    from autoprune.evaluation import DenseModel
    from autoprune.task.base import Task

_COLUMNS = (
    "digest", "strategy", "budget", "meets_budget", "score", "test_score", "latency_ms_predicted",
    "latency_ms_measured", "latency_ratio", "params", "macs", "bytes", "activation_bytes", "onnx",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One fine-tuned, exported and measured model of a run."""

    run: Run
    record: FrontModel

    @property
    def digest(self) -> str:
        """Name of the policy."""
        return self.record.digest

    @property
    def onnx_path(self) -> Path:
        """The exported model, in the precision of the target."""
        return self.run.folder.path / (self.record.onnx or self.run.folder.model(self.digest).onnx)

    def model(self, *, native: bool | None = None, quantized: bool = False) -> nn.Module:
        """The really smaller module with its fine-tuned weights, in evaluation mode.

        It has the model's own classes where these are proven, and is a graph module otherwise; `pruned_to.reason` says
        why. With `native=True`, `StructureError` is raised where own classes cannot be had; `native=False` asks for the
        graph module. With `quantized=True` it is the graph module that computes as the deployed file does: layers that
        the search put in int8 round to the same numbers.
        """
        from autoprune.pipeline.verification import load_model, load_twin
        from autoprune.structure import in_form

        if quantized:
            return load_twin(self.run.dense_model, self.run.folder, self.record.policy)
        structure = self.run.dense_model.structure
        small = load_model(self.run.dense_model, self.run.folder, self.record.policy)
        return in_form(structure, small, native)

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        *,
        input_names: Sequence[str] = (),
        output_names: Sequence[str] = (),
        sparse: bool = False,
    ) -> Path:
        """Write the model with a script that runs it and a page with its numbers; return the path of the model's file.

        The ONNX file is the one that was proven and measured; files of other formats are proven equal to PyTorch now.

        Args:
            path: a file such as `small.onnx`, beside which `small_deploy.py` and `small_README.md` are written; or a
                folder, which gets `model.onnx`, `deploy.py` and `README.md`.
            format: `onnx`, `torchscript`, `pt2`, `openvino` (extra `openvino`) or `safetensors` (packed weights, for
                `autoprune.load`); by default what `path` ends like.
            input_names: of the file's inputs in their order; by default the arguments of the model's `forward`.
            output_names: of its outputs in their order; by default the keys of what the model returns.
            sparse: whether an ONNX file holds weights with many zeros as sparse initializers; that saves no time.

        Raises:
            UsageError: for a format that is unknown, not installed, or cannot hold the int8 layers of the model; and
                for names that do not fit.
            VerificationError: when the file computes something else than the model.
        """
        from autoprune.pipeline.delivery import deliver

        delivery = deliver(self, path, format, input_names=input_names, output_names=output_names, sparse=sparse)
        return delivery.paths.model

    def __repr__(self) -> str:
        m = self.record
        return f"Candidate({m.digest}, score {m.score:.4f}, {latency_of(m):.3f} ms, {m.latency_ratio:.1%} of dense)"


@dataclass(frozen=True)
class Run:
    """A finished run; `Run.open(folder)` opens one. A task that was given as an object must be given again."""

    folder: RunFolder
    task: Task | None = field(default=None)

    @classmethod
    def open(cls, run_dir: str | Path, task: Task | None = None) -> Run:
        """Open the run in a folder; `RunFolderError` when there is no finished one."""
        run = cls(RunFolder(Path(run_dir)), task)
        _ = run.document
        return run

    @cached_property
    def config(self) -> RunConfig:
        """The configuration that the run was started with."""
        values = self.folder.read_config()
        if values is None:
            raise RunFolderError(f"{self.folder.path} is no run folder: it has no run.yaml")
        return load_config(None, values)

    @cached_property
    def document(self) -> dict[str, Any]:
        """Content of `front.json`."""
        return read_front(self.folder)

    @property
    def cost(self) -> str:
        """The cost beside the score by which the models of the front are compared: latency, if a budget limits it."""
        return self.document.get("cost", "latency_ms")

    @cached_property
    def models(self) -> Sequence[FrontModel]:
        """Models of the front, fastest first."""
        return [from_json(value, self.document["space_id"]) for value in self.document["models"]]

    @cached_property
    def baselines(self) -> Sequence[FrontModel]:
        """The uniform baseline of every budget."""
        return [from_json(value, self.document["space_id"]) for value in self.document["baselines"]]

    @cached_property
    def others(self) -> Sequence[FrontModel]:
        """Fully fine-tuned models that are dominated or missed their budget."""
        return [from_json(value, self.document["space_id"]) for value in self.document["others"]]

    @cached_property
    def dense_in_int8(self) -> FrontModel | None:
        """The dense model with every layer in int8; `None` where the search space offers int8 for no layer."""
        value = self.document.get("dense_in_int8")
        return None if value is None else from_json(value, self.document["space_id"])

    def front(self, *, baselines: bool = False) -> pd.DataFrame:
        """The front as a table, fastest first; with the uniform baselines on request."""
        import pandas as pd

        rows = [*self.models, *(self.baselines if baselines else ())]
        frame = pd.DataFrame([{key: getattr(m, key) for key in _COLUMNS} for m in rows], columns=list(_COLUMNS))
        latency = frame["latency_ms_measured"].fillna(frame["latency_ms_predicted"])
        return frame.loc[latency.argsort()].reset_index(drop=True)

    def pick(
        self,
        *,
        max_latency: str | float | None = None,
        max_latency_ms: float | None = None,
        max_params: str | float | None = None,
        max_macs: str | float | None = None,
        max_bytes: str | float | None = None,
        max_activation_bytes: str | float | None = None,
        min_score: float | None = None,
        max_drop: str | float | None = None,
        knee: bool = False,
    ) -> Candidate:
        """Choose a model of the front: the best within limits on its costs, the cheapest with a score, or the knee.

        Args:
            max_latency: `"50%"` of the dense model's, `"1.2ms"`, or a number of milliseconds; a measured latency may
                pass it by 1 %, as it may pass a budget.
            max_latency_ms: milliseconds, to the last digit.
            max_params: `"50%"` of the dense model's, `"50k"`, or a number; likewise the others.
            max_macs: multiply-adds of one example.
            max_bytes: of the weights, such as `"1MB"`.
            max_activation_bytes: peak of one example.
            min_score: least score on validation data.
            max_drop: how far that score may lie below the dense model's: `0.01`, or `"1%"` of the dense score.
            knee: choose the best compromise of cost and score within the limits.

        Raises:
            UsageError: when nothing was asked for, or no model qualifies (the message names the nearest one).

        Example:
            >>> run = autoprune.Run.open("runs/digits")             # doctest: +SKIP
            >>> run.pick(max_latency="50%", max_drop=0.01).digest   # doctest: +SKIP
        """
        dense = self.document["dense"]
        amounts = {
            "latency": max_latency,
            "params": max_params,
            "macs": max_macs,
            "bytes": max_bytes,
            "activation_bytes": max_activation_bytes,
        }
        limit = cost_limit(dense, amounts)
        if max_latency_ms is not None:
            exact = Limit.of(latency_ms=max_latency_ms)
            limit = exact if limit is None else Limit(most=tuple(map(min, limit.most, exact.most)))
        least = least_score(dense["score"], min_score, max_drop)
        return Candidate(run=self, record=pick(self.models, limit=limit, min_score=least, knee=knee, cost=self.cost))

    def candidate(self, digest: str) -> Candidate:
        """A model of this run by its digest or the beginning of it."""
        in_int8 = [] if self.dense_in_int8 is None else [self.dense_in_int8]
        everything = {m.digest: m for m in [*in_int8, *self.models, *self.baselines, *self.others]}
        named = [m for name, m in everything.items() if name.startswith(digest)]
        if len(named) != 1:
            raise UsageError(
                f"{digest!r} names {len(named)} models of this run; known: {', '.join(sorted(everything))}"
            )
        return Candidate(run=self, record=named[0])

    def open_task(self) -> Task:
        """The task of the run; `UsageError` when it was a Python object and was not given again."""
        if self.task is not None:
            return self.task
        if self.config.task == OBJECT_TASK:
            raise UsageError("this run was started with a Task object: pass it again, `Run.open(folder, task=...)`")
        return open_task(self.config)

    @cached_property
    def dense_model(self) -> DenseModel:
        """Task, dense model, structure and channel order of the run."""
        from autoprune.evaluation import DenseModel
        from autoprune.pipeline.channel_order import require_order
        from autoprune.structure import analyze
        from autoprune.training.dense import load_dense

        task, folder = self.open_task(), self.folder
        Manifest(folder).require(folder.dense, folder.order, folder.recipe, folder.form)
        dense = load_dense(task, folder.dense)
        structure = analyze(dense, task.example_inputs, task.outputs)
        require_order(folder, structure)
        return DenseModel.open(task, dense, structure, folder)

    @property
    def bench(self) -> DenseModel:
        """The earlier name of `dense_model`."""
        return self.dense_model


def open_task(config: RunConfig) -> Task:
    """Return the task that a configuration names."""
    from autoprune.task.load import load_task

    return load_task(config.task, config.model, Path(config.data_dir) if config.data_dir else None)
