"""Attributes of studies and trials as they are read: every one has its type, or the study is not one of this program.

A study may lie in a folder or a database of somebody else, and be changed by other programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoprune.errors import AutopruneError, RunFolderError
from autoprune.study.location import StudyLocation, file_of, unusable_file
from autoprune.trials import TrialResult

_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=0, strict=True)]
_Text = Annotated[str, Field(strict=True)]


class _Open(BaseModel):
    """A record that later versions may add fields to."""

    model_config = ConfigDict(extra="allow")


class _Fidelity(_Open):
    name: _Text
    rung: _Count
    finetune_samples: _Count = 0
    val_samples: _Count = 0


class _Measurement(_Open):
    score: _Number
    loss: _Number
    latency_ms: _Number
    latency_source: _Text
    params: _Count
    macs: _Count
    bytes: _Count
    activation_bytes: _Count


class _Policy(_Open):
    space_id: _Text
    widths: dict[_Text, _Count]
    treatments: dict[_Text, _Text] = {}


class _Result(_Open):
    number: _Count
    policy: _Policy
    fidelity: _Fidelity
    status: _Text
    seed: _Count
    measurement: _Measurement | None
    error: _Text | None = None
    seconds: _Number = 0.0
    sample_passes: _Number = 0.0


class _Attempt(_Open):
    status: _Text
    reason: _Text
    limit_s: _Number | None = None


class _Trial(_Open):
    digest: _Text = ""
    origin: _Text = ""
    slot: _Count | None = None
    attempts: list[_Attempt] = []
    result: _Result | None = None


class _Spec(_Open):
    limits: list[dict[_Text, _Number]] = []
    fidelity: _Fidelity | None = None


def require_trial(attributes: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the attributes that this program writes to a trial have their types."""
    _Trial.model_validate(dict(attributes))
    if "result" in attributes:
        TrialResult.from_json(attributes["result"])


def require_spec(spec: object) -> None:
    """Raise `ValueError` unless the question that a study answers is one."""
    _Spec.model_validate(spec)


@contextmanager
def decoding(location: StudyLocation) -> Iterator[None]:
    """Turn the error that wrong attributes of a study raise into one `RunFolderError`."""
    try:
        yield
    except RunFolderError:
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        cause = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        raise unusable_study(location, cause) from error
    except (AutopruneError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise unusable_study(location, f"{type(error).__name__}: {error}") from error


def unusable_study(location: StudyLocation, cause: str) -> RunFolderError:
    """Return the error for studies that this program did not write."""
    file = file_of(location)
    if file is not None:
        return unusable_file(file, cause)
    return RunFolderError(f"the study {location} cannot be used: {cause}. It was changed by another program.")
