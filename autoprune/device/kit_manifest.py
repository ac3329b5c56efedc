"""Types of a kit's manifest: whoever made the kit also made its digest, which proves nothing about them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

_Text = Annotated[str, Field(max_length=1_000, strict=True)]
_Count = Annotated[int, Field(ge=0, le=2**31, strict=True)]
_Number = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)]


class KitManifest(BaseModel):
    """Content of kit.json, as far as this program reads it."""

    provider: _Text
    threads: Annotated[int, Field(ge=1, le=4_096, strict=True)]
    protocol: dict[_Text, _Count | _Number]
    profiled: list[_Text]
    timed: list[_Text]
    reference: _Text
    origin: dict[_Text, Any]
    models: dict[_Text, _Text]

    @model_validator(mode="after")
    def _known_models(self) -> KitManifest:
        if not {*self.profiled, *self.timed, self.reference} <= set(self.models):
            raise ValueError("models are timed that are not in the kit")
        return self
