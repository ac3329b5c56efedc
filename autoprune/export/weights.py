"""`save` and `load`: a pruned model as one safetensors file with its widths and kept channels; no pickle.

Weights with zeros, and rounded ones on request, are packed in their cheapest form (see `packing`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from autoprune.config_file import shortened
from autoprune.errors import AutopruneError, PolicyError, UsageError
from autoprune.export.metadata import Metadata
from autoprune.export.packing import packed, parts_of, unpacked
from autoprune.export.rounded_steps import Steps
from autoprune.files import parsed_json
from autoprune.model.acceptance import ExampleInputs
from autoprune.model.outputs import NamedOutputs, Selector
from autoprune.pruning.vocabulary import maps_of, with_maps
from autoprune.records import Policy
from autoprune.recovery.whole_model import whole_cut
from autoprune.runfolder import write_atomic
from autoprune.structure import Input, PrunedTo, analyze, in_form
from autoprune.structure.low_rank import with_ranks
from autoprune.training.dense import require_same_shapes
from autoprune.treatments import DENSE, Treatment

_KEY, _SCHEMA = "autoprune", 1
_PACKED_SCHEMA, _BLOCKS_SCHEMA = 2, 3
"""Schemas of files with packed weights, and with steps of blocks of inputs; others have the one before, which earlier
versions read."""


def save(model: nn.Module, path: str | Path, *, rounded: bool = False) -> Path:
    """Write a pruned model to a safetensors file, atomically.

    The file holds the state dict, and in its metadata the width and the kept channels of every unit, and the shapes and
    types of the inputs. Weights with zeros take the cheapest form of each: all numbers, the numbers that are left with
    a bit mask or as compressed rows, or with the places in groups of N:M.

    Args:
        model: a model of `prune`, `recover`, `sparsify` (with data), `load` or a run.
        path: file to write.
        rounded: whether layers that are in int8, w8 or w4 by their policy are stored as steps, 1 byte or half a byte a
            number. `load` then returns weights that are rounded to them.

    Returns:
        The path.

    Raises:
        UsageError: for a model that autoprune did not prune.
        RunFolderError: when the file cannot be written.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> small = autoprune.prune(model, torch.randn(1, 4), keep=0.5)
        >>> autoprune.save(small, "small.safetensors").name
        'small.safetensors'
    """
    cut = getattr(model, "pruned_to", None) or whole_cut(model)
    if not isinstance(cut, PrunedTo):
        raise UsageError(f"only models that autoprune pruned can be saved; this {type(model).__name__} has no policy")
    about = {"schema": _SCHEMA, "widths": dict(cut.widths), "kept": dict(cut.kept)}
    about["inputs"] = [vars(taken) for taken in cut.inputs]
    about |= {"ranks": dict(cut.ranks)} if cut.ranks else {}
    about |= {"outputs": list(cut.outputs)} if cut.outputs is not None else {}
    about |= {"treatments": dict(cut.treatments)} if cut.treatments else {}
    tensors, layout = _packed(model, cut, rounded)
    blocks = any("bits" in entry for entry in layout.values())
    about |= {"schema": _BLOCKS_SCHEMA if blocks else _PACKED_SCHEMA, "packed": layout} if layout else {}
    write_atomic(Path(path), to_bytes(tensors, {_KEY: json.dumps(about)}))
    return Path(path)


def with_rounded_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a pruned model with the weights that its file has, where layers are rounded by their policy."""
    cut, rounded = getattr(model, "pruned_to", None), copy.deepcopy(model)
    weights = rounded.state_dict()
    for name, treatment in (cut.treatments if isinstance(cut, PrunedTo) else {}).items():
        steps = Steps.of(weights[name], Treatment.parse(treatment).precision) if name in weights else None
        if steps is not None:
            weights[name].copy_(steps.values)
    return rounded


def _packed(model: nn.Module, cut: PrunedTo, rounded: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a model's file, and the entries of its packed ones."""
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        treatment = Treatment.parse(cut.treatments.get(name, str(DENSE)))
        steps = Steps.of(tensor, treatment.precision) if rounded else None
        made = packed(tensor, treatment.pattern, steps) if tensor.is_floating_point() else None
        if made is None:
            tensors[name] = tensor.detach().clone().contiguous()
        else:
            parts, layout[name] = made
            tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    return tensors, layout


def load(
    build_model: Callable[[], nn.Module],
    path: str | Path,
    example_inputs: ExampleInputs | None = None,
    *,
    native: bool | None = None,
    outputs: Selector = None,
) -> nn.Module:
    """Return the pruned model that `save` wrote, in evaluation mode.

    Args:
        build_model: returns the dense model that was pruned; its weights do not matter. Rows of embeddings that a
            vocabulary lost may be there: the file has the map of ids.
        path: file that `save` wrote.
        example_inputs: as for `prune`; by default numbers of the shapes and types that the file names.
        native: the form of the result, as in `prune`.
        outputs: as for `prune`; by default what the file names.

    Raises:
        UsageError: for an absent or damaged file.
        PolicyError: for metadata that are damaged or of another model (the message says what differs).
        TaskError: for a file of another model, whose parameters differ.

    Example:
        >>> import autoprune, torch
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> small = autoprune.prune(build(), torch.randn(1, 4), keep=0.5)
        >>> again = autoprune.load(build, autoprune.save(small, "small.safetensors"))
        >>> x = torch.randn(3, 4)
        >>> torch.equal(again(x), small(x))
        True
    """
    if isinstance(build_model, nn.Module) or not callable(build_model):
        raise UsageError(
            f"build_model is a function that returns the dense model, such as `lambda: model`; got "
            f"{type(build_model).__name__}"
        )
    cut, weights, layout = _read(Path(path))
    if example_inputs is None and not cut.inputs:
        raise PolicyError(f"{path} does not say what the model takes; give example_inputs")
    if outputs is None and cut.outputs is not None:
        outputs = NamedOutputs(cut.outputs)
    dense = with_maps(build_model(), maps_of(weights))
    structure = analyze(dense, _examples(cut.inputs) if example_inputs is None else example_inputs, outputs)
    try:
        policy = Policy(space_id=structure.digest(), widths=cut.widths)
        model = structure.shrink(policy, {name: np.asarray(kept) for name, kept in cut.kept.items()}, prove=False)
        model = with_ranks(model, cut.ranks)
    except (AutopruneError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise PolicyError(f"{path} is of another model than build_model returns: {shortened(str(error))}") from error
    model.pruned_to = None if model.pruned_to is None else replace(model.pruned_to, treatments=cut.treatments)
    weights = _unpacked(model, weights, layout, Path(path))
    require_same_shapes(model.state_dict(), weights, Path(path))
    model.load_state_dict(weights)
    model.eval()
    return in_form(structure, model, native, given=dense)


def _unpacked(
    model: nn.Module, tensors: Mapping[str, Tensor], layout: Mapping[str, Any], path: Path
) -> dict[str, Tensor]:
    """Return the weights of a file, those of its layout unpacked to the shapes that a model has."""
    own, whole = model.state_dict(), dict(tensors)
    for name, entry in layout.items():
        if name not in own:
            raise PolicyError(f"{path} is of another model than build_model returns: it has no {name!r}")
        parts = parts_of(tensors, name)
        try:
            whole[name] = unpacked(parts, entry, tuple(own[name].shape))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, AutopruneError) as error:
            raise PolicyError(f"the packed weight {name!r} in {path} is damaged: {error}. Save it again") from error
        for part in parts:
            del whole[f"{name}.{part}"]
    return whole


def _examples(inputs: Sequence[Input]) -> ExampleInputs:
    """Return numbers between 0.5 and 1.5 for floating point, and ones elsewhere: a token, and a mask that keeps all."""
    generator = torch.Generator().manual_seed(0)
    ones = [torch.ones(taken.shape, dtype=getattr(torch, taken.dtype)) for taken in inputs]
    noise = [torch.rand(one.shape, generator=generator) - 0.5 for one in ones]
    values = [one + n.to(one) if one.is_floating_point() else one for one, n in zip(ones, noise, strict=True)]
    keywords = [taken.keyword for taken in inputs if taken.keyword is not None]
    return dict(zip(keywords, values, strict=True)) if keywords else values


def _read(path: Path) -> tuple[PrunedTo, dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error
    if text is None:
        raise UsageError(f"{path} was not written by autoprune.save: it does not say what the model was pruned to")
    try:
        about: Any = parsed_json(text)
        if about["schema"] not in (_SCHEMA, _PACKED_SCHEMA, _BLOCKS_SCHEMA):
            known = f"{_SCHEMA}, {_PACKED_SCHEMA}, {_BLOCKS_SCHEMA}"
            raise PolicyError(f"{path} has schema {about['schema']!r:.100}; this version reads {known}")
        Metadata.model_validate(about)
        inputs = tuple(
            Input(**taken | {"shape": tuple(taken["shape"]), "free": tuple(taken.get("free", ()))})
            for taken in about.get("inputs", ())
        )
        _examples(inputs)
        outputs = tuple(about["outputs"]) if "outputs" in about else None
        cut = PrunedTo(widths=dict(about["widths"]), kept=dict(about["kept"]), inputs=inputs, outputs=outputs)
        treatments = {str(name): str(Treatment.parse(text)) for name, text in about.get("treatments", {}).items()}
        cut = replace(cut, ranks=dict(about.get("ranks", {})), treatments=treatments)
        return cut, weights, dict(about.get("packed", {}))
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise PolicyError(f"the metadata of {path} is damaged: {shortened(key)}: {wrong['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"the metadata of {path} is damaged: {shortened(repr(error))}") from error
