"""The configuration of a run: one validated value, saved with the run in full."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import os
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autoprune.budgets import Budget, ScoreBudget, alternatives, parse_budget
from autoprune.config_file import Texts, read_yaml, require_usable_texts, validation_message, without_booleans
from autoprune.errors import ConfigError

FOUNDATION = (
    "task",
    "model",
    "data_dir",
    "dense",
    "target",
    "threads",
    "batch",
    "precision",
    "scores",
    "reconstruct",
    "seed",
)
"""Fields that a run folder is bound to: a run that differs in one of these needs a folder of its own."""

QUESTION = ("space", "strategy", "sampler", "effort", "trials", "schedule")
"""Fields that may change until the first trial. Budgets may change at any time: other budgets make new studies."""

OBJECT_TASK = "(object)"
"""Stands for a task that was given as a Python object and cannot be loaded by name."""

_BY_ANY_COST = ("guided", "direct", "random", "uniform")
"""Strategies that go by whatever the budgets limit; the others go by latency."""

_FIRST_LATENCY = "50%"
"""The latency that a budget by score searches first."""

_SCHEMA = 1  # of `run.yaml`, as the run folder writes it: a file of another version may mean something else


_LONGEST_NAME = 255
"""Bytes of a file's name on the file systems that there are."""

_MOST_THREADS, _MOST_EXAMPLES, _MOST_TRIALS = 4_096, 2**20, 10**9
"""Numbers beyond these are mistakes, and some are too large for the runtime or the database."""


class RunConfig(BaseModel):
    """Everything that decides what a search does. Unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = "mnist5k"
    """A built-in task, `package.module:function`, or `path/to/file.py:function`."""
    model: str | None = None
    """A built-in model; the task's own default when left out."""
    data_dir: str | None = None
    """Folder of the data, for tasks that read files."""
    dense: str | None = None
    """Trained weights of the dense model (safetensors); trained once by the task's recipe when left out."""
    space: str = "default"
    """A built-in search space or a YAML file."""
    target: str = "ort-cpu"
    """The device and runtime that latency is measured on."""
    threads: int = Field(default=1, ge=1, le=_MOST_THREADS)
    """Threads of the runtime."""
    batch: int = Field(default=1, ge=1, le=_MOST_EXAMPLES)
    """Batch size that latency is measured at."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Arithmetic of the deployed model: fp32, or int8 by static quantization."""
    budgets: Texts = Field(default=("50%", "33%"), min_length=1)
    """Limits on the cost of a model: a share of the dense latency (`50%`), a time (`1.2ms`), another cost (`bytes:1MB`,
    `params:50%`, `macs:10M`, `activation_bytes:100kB`), or several limits joined by commas (`50%,bytes:1MB`). Budgets
    that limit latency are alternatives, each of which gives models; one that names no latency is added to every one of
    those; if none names latency, those that limit the same cost are alternatives. A score (`score:-1%` of the dense
    model's, `score:0.92`) asks for the fastest model that keeps it on validation data."""
    strategy: str = "guided"
    """How policies are proposed: `guided` by sensitivities, an exact solver and a refinement; the others are yardsticks
    (see `autoprune.search.strategies`)."""
    sampler: str = "tpe"
    """Optuna sampler of widths, in the direct strategy."""
    effort: Literal["small", "medium", "large"] = "small"
    """How much the search may spend; everything else is derived from it."""
    trials: int | None = Field(default=None, ge=1, le=_MOST_TRIALS)
    """Policies to score at the cheapest fidelity; derived from the effort when left out."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Minutes that all calls of the run may take together: the search plans what it can do in that time, at most its
    effort. No limit when left out."""
    scores: str = "obs"
    """How the channels of a unit are ranked: `obs` by the error that remains after the layers that read them were
    refitted, one of the scores of `autoprune.pruning.SCORES`, or an expression such as `0.5*obs+0.5*taylor`, a weighted
    mean of ranks."""
    reconstruct: bool = True
    """Whether layers that read pruned channels are refitted by least squares."""
    schedule: Literal["one-shot", "set", "rigl"] = "one-shot"
    """How full fine-tunes treat the zeros of a policy: they stay where they are (`one-shot`), or change places, the
    smallest weights for random ones (`set`) or for those with the largest gradients (`rigl`), as by the `schedule` of
    `autoprune.sparsify`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything."""
    table: str | None = None
    """A latency table made by `autoprune profile`; profiled once when left out."""
    measure_table: bool = False
    """Measure a latency table also where no budget limits the latency, for a search that goes by latencies, too."""
    allow_foreign_table: bool = False
    """Accept a latency table that was measured on another machine or runtime."""
    allow_noise: bool = False
    """Accept latencies that vary by more than 15 % from one measurement to the next; every report says so."""
    warm_start: str | None = None
    """The folder of another run, whose latency table, dense weights and scores are used where their digests fit: task,
    model, target, space, seed and versions."""
    executor: Literal["inline", "process", "ray"] = "process"
    """Where trials run: in this process, in worker processes of this host, or on a Ray cluster."""
    workers: int | None = Field(default=None, ge=1, le=_MOST_THREADS)
    """Trials that run at the same time; when left out, one per core and at most 8, or what the Ray cluster holds."""
    ray_address: str | None = None
    """The Ray cluster: HOST:PORT, or `auto` for the one that this host is part of; one is started when left out."""
    resources: dict[str, float] = Field(default_factory=lambda: {"cpu": 1.0})
    """Resources of a Ray node that one trial takes, such as `cpu=1,gpu=0.25`."""
    storage: str | None = None
    """Where the studies are kept: `postgresql+psycopg://USER:$PASSWORD@HOST/DATABASE` or `journal:PATH`, with `$NAME`
    for variables of the environment; a file of the run folder when left out."""
    run_id: str = Field(default_factory=lambda: uuid.uuid4().hex[:12], min_length=1)
    """Prefix of the names of this run's studies in a storage that several runs share."""
    trial_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which a trial is ended and tried again; no limit when left out. Not for `inline`."""
    worker_threads: int = Field(default=1, ge=1, le=_MOST_THREADS)
    """Torch threads of each worker, and of trials that run in this process."""

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, values: Any) -> Any:
        return require_usable_texts(values)

    @field_validator("task", "model", "data_dir", "dense", "space", "table", "warm_start")
    @classmethod
    def _short_names(cls, value: str | None) -> str | None:
        longest = max((len(part.encode()) for part in (value or "").split("/")), default=0)
        if longest > _LONGEST_NAME:
            raise ValueError(f"the name of a file or folder is at most {_LONGEST_NAME} bytes long; got {longest}")
        if value == "":
            raise ValueError("a name must not be empty: leave the option out; got ''")
        return value

    @field_validator("budgets")
    @classmethod
    def _readable(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parsed = [parse_budget(text) for text in texts]
        return tuple(dict.fromkeys(str(budget) for budget in parsed))

    @field_validator(
        "threads",
        "batch",
        "trials",
        "seed",
        "workers",
        "resources",
        "trial_timeout",
        "worker_threads",
        "max_minutes",
        mode="before",
    )
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return without_booleans(value)

    @field_validator("resources", mode="before")
    @classmethod
    def _amounts(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",")]
        return {name.strip().lower(): amount for name, _, amount in pairs}

    @field_validator("resources")
    @classmethod
    def _possible(cls, amounts: dict[str, float]) -> dict[str, float]:
        if not amounts or any(not name or not 0 <= amount < math.inf for name, amount in amounts.items()):
            raise ValueError(f"resources are names with amounts of 0 or more, as in cpu=1,gpu=0.25; got {amounts}")
        return {"cpu": 1.0} | amounts

    @property
    def slots(self) -> int:
        """Number of trials that run at the same time on this host."""
        if self.executor == "inline":
            return 1
        return self.workers or max(1, min(os.cpu_count() or 1, 8))

    def parsed_budgets(self) -> tuple[Budget, ...]:
        """Return the budgets that each give models: alternatives, each with all other limits.

        A budget by score begins at half of the latency where no budget names a latency.
        """
        first = [Budget.parse(_FIRST_LATENCY)] if self.by_score_alone else []
        return alternatives([*self._cost_budgets(), *first])

    def with_untimed(self, budget: Budget) -> Budget:
        """Return a budget with the limits that are added to every budget."""
        return alternatives([budget, *(other for other in self._cost_budgets() if not other.timed)])[0]

    @property
    def by_score_alone(self) -> bool:
        """Whether the search itself decides which latencies to search, because budgets by score alone give models."""
        return bool(self.score_budgets()) and not any(budget.timed for budget in self._cost_budgets())

    @property
    def needs_latency(self) -> bool:
        """Whether the search has to know latencies: for a budget, for its strategy, or because that was asked for."""
        timed = any(budget.timed for budget in self.parsed_budgets())
        return timed or self.measure_table or self.table is not None or self.strategy not in _BY_ANY_COST

    def _cost_budgets(self) -> list[Budget]:
        return [budget for budget in map(parse_budget, self.budgets) if isinstance(budget, Budget)]

    def score_budgets(self) -> tuple[ScoreBudget, ...]:
        """Return the budgets by score."""
        return tuple(budget for budget in map(parse_budget, self.budgets) if isinstance(budget, ScoreBudget))


def field_docs() -> dict[str, str]:
    """Return the text under each field of `RunConfig`, read from the source file, where Python leaves it."""
    (definition,) = ast.parse(inspect.getsource(RunConfig)).body
    lines = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(lines)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def load_config(path: Path | None, given: dict[str, Any]) -> RunConfig:
    """Build the configuration from a YAML file and options.

    Args:
        path: YAML file with fields of `RunConfig`, or `None`.
        given: fields of `RunConfig`; they win over the file.

    Raises:
        ConfigError: for a file that cannot be read, an unknown key or a wrong value (the message names the file, the
            key and the known keys), or a schema of another version.

    Example:
        >>> load_config(None, {"budgets": ["50%"], "seed": 1}).effort
        'small'
    """
    values = read_yaml(path) if path else {}
    schema = values.pop("schema", _SCHEMA)
    if schema != _SCHEMA:
        raise ConfigError(
            f"{path} has schema {schema!r}; this version of autoprune reads {_SCHEMA}. Use the version that wrote it."
        )
    try:
        return RunConfig.model_validate(values | given)
    except ValidationError as error:
        raise ConfigError(validation_message(path or "options", error, RunConfig.model_fields)) from error
