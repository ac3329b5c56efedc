"""`front.json` and `metrics.json` as they are read: every field has its type, and names no file but the run's own.

A run folder may come from somebody else, or from a disk that lost something. What is read here was compared with the
manifest of its run, and is of the right types and in itself consistent, also where there is no manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoprune.errors import AutopruneError, RunFolderError
from autoprune.manifest import Manifest
from autoprune.records import COSTS, Policy
from autoprune.runfolder import ModelFolder, RunFolder, int8_beside, read_json

_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=0, strict=True)]
_Text = Annotated[str, Field(strict=True)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$", strict=True)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", strict=True)]
"""A name that is written into a script: it is nothing but a name."""


class _Open(BaseModel):
    """A record that later versions may add fields to."""

    model_config = ConfigDict(extra="allow")


class _Sizes(_Open):
    params: _Count | None = None
    macs: _Count | None = None
    bytes: _Count | None = None
    activation_bytes: _Count | None = None


class _Dense(_Sizes):
    score: _Number
    test_score: _Number
    latency_ms_measured: _Number


class _Model(BaseModel):
    """A model of the front: what `FrontModel` holds, with the widths in place of the policy."""

    model_config = ConfigDict(extra="forbid")

    digest: _Digest
    policy: dict[_Text, _Count]
    treatments: dict[_Text, _Text] = {}
    score: _Number
    test_score: _Number
    latency_ms_predicted: _Number | None
    latency_ms_measured: _Number | None
    latency_ratio: _Number
    params: _Count
    macs: _Count
    bytes: _Count
    fidelity: _Text
    strategy: _Text
    budget: _Text | None
    meets_budget: bool | None
    onnx: _Text | None = None
    activation_bytes: _Count | None = None

    @model_validator(mode="after")
    def _own_file(self) -> _Model:
        own = ModelFolder(Path("models") / self.digest).onnx
        if self.onnx not in (None, str(own), str(int8_beside(own))):
            raise ValueError(f"the file of a model is {own} in its run folder; got {self.onnx!r}")
        return self


class _HeldOut(_Open):
    policies: _Count = 0
    noise_percent: _Number = 0.0
    mape_percent: _Number | None = None
    max_percent: _Number | None = None
    bias_percent: _Number | None = None
    spearman: _Number | None = None
    within_2sd: _Number | None = None


class _Target(_Open):
    name: _Text = ""
    provider: _Name | None = None
    threads: _Count = 1
    batch: _Count = 1
    precision: _Text = ""
    runtime: _Text = ""
    runtime_version: _Text = ""
    cpu: _Text = ""
    isa: list[_Text] = []
    accelerator: _Text = ""


class _Table(_Open):
    target: _Target
    created: _Text = ""
    policies: dict[_Text, _Count] = {}
    refits: _Count = 0
    foreign: list[_Text] = []


class _Rung(_Open):
    rung: _Text
    budget: _Text
    strategy: _Text
    digest: _Digest | None = None
    score: _Number
    divergence: _Number | None = None
    latency_ms_predicted: _Number | None = None
    sample_passes: _Number | None = None


class _Correlation(_Open):
    cheap: _Text
    dear: _Text
    pairs: _Count
    rho: _Number | None
    low: _Number | None
    high: _Number | None


class _Form(_Open):
    name: _Text
    reason: _Text
    notes: list[_Text]


class _Front(_Open):
    metric: _Text
    dense: _Dense
    models: list[_Model]
    baselines: list[_Model]
    others: list[_Model]
    dense_in_int8: _Model | None = None
    space_id: _Text
    cost: _Text = "latency_ms"
    held_out: _HeldOut = _HeldOut()
    latency_table: _Table | None = None
    budgets: list[_Text] = []
    unmet_budgets: list[_Text] = []
    layers: _Count = 0
    rungs: list[_Rung]
    rank_correlations: list[_Correlation] = []
    search_sample_passes: dict[_Text, _Number] = {}
    score_examples: dict[_Text, _Count] = {}
    score_budgets: list[dict[_Text, Any]] = []
    not_reconstructed: list[_Text] = []
    form: _Form | None = None

    @model_validator(mode="after")
    def _one_space(self) -> _Front:
        if self.cost not in COSTS:
            raise ValueError(f"the cost is one of {', '.join(COSTS)}; got {self.cost!r}")
        models = [*self.models, *self.baselines, *self.others, *([self.dense_in_int8] if self.dense_in_int8 else [])]
        for model in models if self.space_id else ():
            stored = {"space_id": self.space_id, "widths": model.policy, "treatments": model.treatments}
            try:
                digest = Policy.from_json(stored).digest()
            except (AutopruneError, KeyError, TypeError) as error:
                raise ValueError(f"the policy of {model.digest} is none: {error}") from error
            if digest != model.digest:
                raise ValueError(f"the policy of {model.digest} has the digest {digest}")
        return self


class _Input(_Open):
    name: _Text
    dtype: _Name
    shape: list[_Count]


class _Sample(_Open):
    median_ms: _Number


class _Metrics(_Sizes):
    score: _Number
    test_score: _Number
    latency_ms_predicted: _Number | None
    latency_ms_measured: _Number | None
    latency_ratio: _Number
    metric: _Text = ""
    onnx_relative_difference: _Number | None = None
    int8_relative_difference: _Number | None = None
    int8_same_predictions: _Number | None = None
    latency_ms_predicted_sd: _Number | None = None
    prediction_error: _Number | None = None
    inputs: list[_Input] = []
    dynamic_shapes: dict[_Text, Any] = {}
    samples: dict[_Text, _Sample] = {}
    onnx_sha256: _Digest | None = None
    weights_sha256: _Digest | None = None


def read_front(folder: RunFolder) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        RunFolderError: when it is absent, torn, not what the run wrote, or holds something of a wrong type.
    """
    Manifest(folder).require(folder.front)
    return _checked(folder.front, _Front)


def read_metrics(folder: RunFolder, digest: str) -> dict[str, Any]:
    """Read the metrics of a model of a run.

    Raises:
        RunFolderError: as `read_front`.
    """
    path = folder.model(digest).metrics
    Manifest(folder).require(path)
    return _checked(path, _Metrics)


def _checked(path: Path, record: type[BaseModel]) -> dict[str, Any]:
    value = read_json(path)
    try:
        record.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        rule = problem["msg"].removeprefix("Value error, ")
        raise RunFolderError(
            f"{path} is damaged: {key + ': ' if key else ''}{rule}. Delete it and run `autoprune search` on its run "
            "folder again."
        ) from error
    return value
