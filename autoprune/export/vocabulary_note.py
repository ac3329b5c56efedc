"""What a page says about maps of ids: read from the header of a file of weights, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MAP = ".rows_of_ids"
"""End of the name of a map of ids (see `autoprune.pruning.vocabulary`)."""

_MOST_HEADER = 100_000_000
"""Bytes of a header: the limit of safetensors."""


def described_vocabularies(path: Path) -> str:
    """Return one sentence about the maps of ids in a safetensors file of unpacked weights, empty without any.

    Source: the header of the format, https://github.com/huggingface/safetensors#format.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(min(size, _MOST_HEADER)))
    owners = [name.removesuffix(_MAP) for name in header if name.endswith(_MAP)]
    known = [
        (owner, header[owner + _MAP]["shape"], header[f"{owner}.weight"]["shape"])
        for owner in owners
        if f"{owner}.weight" in header
    ]
    parts = [f"`{owner}` has {rows[0]} rows for {ids[0]} ids" for owner, ids, rows in known]
    return f"{'; '.join(parts)}; ids that the data never use share a row" if parts else ""
