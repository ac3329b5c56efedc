"""The model of a run, without the rows of its embeddings that the data never use where the search space says so.

The maps of ids are a part of the weights of the dense model, which the run folder keeps: whoever loads these has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autoprune.config import RunConfig
from autoprune.errors import ConfigError, UsageError
from autoprune.pruning.vocabulary import MAP, cut_vocabulary, maps_of, with_maps
from autoprune.space import find_space, load_spec
from autoprune.task.base import Task
from autoprune.training.dense import build_dense


def built_model(config: RunConfig, task: Task, *, dense: Iterable[Path] = (), seed: int = 0) -> nn.Module:
    """Build the untrained model of a task, with the maps of ids of its trained weights, or those the space asks for.

    Args:
        config: names the space, and maybe a file of trained weights.
        task: whose training data say which ids are used.
        dense: files of trained weights that count before that of the configuration; those that are absent do not.
        seed: of the initial weights.

    Raises:
        ConfigError: the space asks for it and no row can go.
    """
    model = build_dense(task, seed=seed)
    given = [Path(config.dense)] if config.dense else []
    for path in (*dense, *given):
        if maps := _maps_in(path):
            return with_maps(model, maps)
    if not load_spec(find_space(config.space)).vocabulary:
        return model
    try:
        return cut_vocabulary(model, task)
    except UsageError as error:
        raise ConfigError(f"{find_space(config.space).name}: vocabulary: {error}. Leave `vocabulary` out") from error


def described_maps(model: nn.Module) -> str:
    """Return in words how many rows embeddings have for how many ids; empty for a model without maps."""
    parts = [
        f"{name} has {int(places.max()) + 1:,} rows for {len(places):,} ids"
        for name, places in maps_of(model.state_dict()).items()
    ]
    return ", ".join(parts)


def _maps_in(path: Path) -> Mapping[str, Tensor]:
    """Return the maps of ids in a safetensors file; none where it is absent or cannot be read, which others say."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return maps_of({name: file.get_tensor(name) for name in names if name.endswith(MAP)})
    except (SafetensorError, OSError):
        return {}
