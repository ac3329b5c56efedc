"""Types of what a file of weights says about its model: the file may come from anywhere."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

_MOST_WIDTH, _MOST_NUMBERS = 2**24, 2**28

_Width = Annotated[int, Field(ge=0, le=_MOST_WIDTH, strict=True)]
_Text = Annotated[str, Field(max_length=1_000, strict=True)]


class _Input(BaseModel):
    """An input as the metadata of a file describes it: few enough numbers to make an example of."""

    shape: list[Annotated[int, Field(ge=0, le=_MOST_NUMBERS, strict=True)]]
    dtype: Literal[
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        "complex64", "complex128",
    ]  # fmt: skip
    keyword: _Text | None = None
    free: list[_Text] = []

    @field_validator("shape")
    @classmethod
    def _affordable(cls, shape: list[int]) -> list[int]:
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"an input has at most {_MOST_NUMBERS:,} numbers")
        return shape


class Metadata(BaseModel):
    """Types of what `save` writes beside the weights; the file may come from anywhere."""

    widths: dict[_Text, _Width]
    kept: dict[_Text, list[_Width]]
    inputs: list[_Input] = []
    ranks: dict[_Text, _Width] = {}
    outputs: list[_Text | int] | None = None
