"""Optuna still has every private name that we use, and one file alone uses them."""

from __future__ import annotations

import ast
from pathlib import Path

import optuna
import pytest
from optuna.storages._rdb import models

import autoprune
from autoprune.study import optuna_private
from autoprune.study.optuna_private import (
    FIXED_PARAMETERS,
    PRIVATE_NAMES,
    constraint_attribute,
    generation_of,
    sampler_notes,
    study_id,
    trial_id,
    write_sampler_notes,
)
from autoprune.study.samplers import make_sampler

PACKAGE = Path(autoprune.__file__).parent


@pytest.fixture
def owners() -> dict[str, object]:
    """Something that has each group of names."""
    storage = optuna.storages.RDBStorage("sqlite://")
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    (summary,), (frozen,) = storage.get_all_studies(), study.trials
    owners = {"Study": study, "FrozenStudy": summary, "Trial": trial, "FrozenTrial": frozen}
    return owners | {"RDBStorage": storage, "models": models}


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_optuna_has_every_private_name(owners: dict[str, object], name: str) -> None:
    owner, _, attribute = name.partition(".")
    assert hasattr(owners[owner], attribute), f"Optuna {optuna.__version__} has no {name}: {PRIVATE_NAMES[name]}"


def test_no_other_file_touches_a_private_name() -> None:
    private = {name.partition(".")[2] for name in PRIVATE_NAMES} - {"engine"}  # which SQLAlchemy has as well
    touching = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            attribute = isinstance(node, ast.Attribute) and node.attr in private
            own = attribute and isinstance(node.value, ast.Name) and node.value.id == "self"
            module = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna.")
            hidden = module and any(part.startswith("_") for part in (node.module or "").split("."))
            if (attribute and not own) or hidden or (isinstance(node, ast.FunctionDef) and node.name in private):
                touching.add(path)
    assert touching == {Path(optuna_private.__file__)}


def test_ids_are_those_that_storages_take() -> None:
    study = optuna.create_study()
    trial = study.ask()
    storage = study._storage
    assert storage.get_study_name_from_id(study_id(study)) == study.study_name
    assert storage.get_trial(trial_id(trial)).number == trial.number


def test_an_enqueued_trial_has_fixed_parameters() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1})
    study.ask()
    assert FIXED_PARAMETERS in study.trials[0].system_attrs


def test_optuna_reads_a_constraint_from_its_attribute() -> None:
    study = optuna.create_study()
    study.ask().set_constraint("budget", 0.25)
    assert constraint_attribute("budget", 0.25).items() <= study.trials[0].system_attrs.items()


def test_a_genetic_sampler_keeps_generations_and_notes() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=make_sampler("nsga2", 0))
    distribution = {"x": optuna.distributions.IntDistribution(0, 9)}
    for _ in range(17):
        trial = study.ask(distribution)
        generation = generation_of(study, trial)
        study.tell(trial, [1.0, 1.0])
    assert list(generation.values()) == [1]
    again = optuna.create_study(directions=["minimize", "minimize"])
    write_sampler_notes(again, sampler_notes(study))
    assert sampler_notes(again) == sampler_notes(study) != {}
