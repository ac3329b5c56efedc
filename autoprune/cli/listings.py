"""`autoprune units`, `tasks`, `spaces` and `targets`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from autoprune.cli.options import DataOption, ModelOption, SpaceOption, TableOption, TaskOption, given_options, say
from autoprune.cli.tables import JsonOption, show_json, show_table
from autoprune.errors import UsageError

if TYPE_CHECKING:
    from autoprune.structure import Structure
    from autoprune.treatments import Level


def units(
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    space: SpaceOption = None,
    table: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what can be pruned in a model, what each unit is worth, what keeps its width, and why."""
    from autoprune.pipeline.commands import described_units
    from autoprune.pruning import shares
    from autoprune.report import fixed_table, layer_table, unit_table

    given = given_options(task=task, model=model, data_dir=data_dir, space=space, table=table)
    structure, levels, latency = described_units(**given)
    if as_json:
        show_json(_units_document(structure, levels, shares(structure), latency))
        return
    show_table(unit_table(structure.units, levels, shares(structure), latency))
    if any(layer.name in levels for layer in structure.layers):
        show_table(layer_table(structure.layers, levels))
    show_table(fixed_table(structure.fixed, structure.unsupported, structure.fixed_sizes))


def _units_document(
    structure: Structure,
    levels: Mapping[str, Sequence[Level]],
    shares: Mapping[str, tuple[float, float]],
    latency: Mapping[str, float],
) -> dict[str, Any]:
    from autoprune.treatments import level_to_json

    units = [
        {
            "name": unit.name,
            "kind": unit.kind,
            "width": unit.width,
            "removable": unit.removable,
            "levels": [level_to_json(level) for level in levels[unit.name]],
            "params_share": shares[unit.name][0],
            "macs_share": shares[unit.name][1],
            "latency_share": latency.get(unit.name),
            "members": [vars(member) for member in unit.members],
        }
        for unit in structure.units
    ]
    layers = [
        {
            "name": layer.name,
            "operator": layer.op,
            "precisions": list(layer.precisions),
            "levels": [level_to_json(level) for level in levels.get(layer.name, ())],
        }
        for layer in structure.layers
    ]
    return {"units": units, "layers": layers, **fixed_document(structure)}


def fixed_document(structure: Structure) -> dict[str, Any]:
    """Return what keeps its size in a model, and why."""
    return {
        "fixed": [vars(entry) for entry in structure.fixed],
        "unsupported_operators": {name: list(nodes) for name, nodes in structure.unsupported.items()},
        "fixed_input_sizes": [vars(entry) for entry in structure.fixed_sizes],
    }


def tasks(as_json: JsonOption = False) -> None:
    """List the built-in tasks and models."""
    from autoprune.task.builtin import MODELS, TASKS

    if as_json:
        named = {name: {"summary": task.summary, "default_model": task.default_model} for name, task in TASKS.items()}
        show_json({"tasks": named, "models": list(MODELS)})
        return
    listing("task", {name: f"{task.summary}; model {task.default_model}" for name, task in TASKS.items()})
    say(f"models: {', '.join(MODELS)}")


def spaces(as_json: JsonOption = False) -> None:
    """List the built-in search spaces."""
    from autoprune.space import builtin_spaces, load_spec

    described = {name: load_spec(path).description for name, path in builtin_spaces().items()}
    if as_json:
        show_json({"spaces": described})
        return
    listing("space", described)


def targets(as_json: JsonOption = False) -> None:
    """List the targets that latency can be measured on."""
    from autoprune.device.connect import make_target
    from autoprune.device.target import TARGETS

    targets: dict[str, dict[str, Any]] = {}
    for name, kind in TARGETS.items():
        targets[name] = {"summary": kind.summary, "available": True}
        try:
            target = make_target(name)
            targets[name] |= {"runtime": target.runtime, "runtime_version": target.runtime_version, "cpu": target.cpu}
        except UsageError:
            targets[name]["available"] = False
    targets["ssh://user@host"] = {"summary": "ONNX Runtime on another host, measured over ssh", "available": None}
    if as_json:
        show_json({"targets": targets})
        return
    listing("target", {name: _target_line(entry) for name, entry in targets.items()})


def _target_line(entry: Mapping[str, Any]) -> str:
    if "runtime" in entry:
        return f"{entry['summary']}: {entry['runtime']} {entry['runtime_version']}, {entry['cpu']}"
    return f"{entry['summary']} (not available here)" if entry["available"] is False else entry["summary"]


def listing(title: str, rows: Mapping[str, str]) -> None:
    """Print names and what they are."""
    table = Table(title, "what it is", box=None, pad_edge=False)
    for name, text in rows.items():
        table.add_row(Text(name), Text(text))
    show_table(table)
