from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.config import FOUNDATION, QUESTION, RunConfig, load_config
from autoprune.errors import BudgetError, ConfigError
from autoprune.runfolder import RunFolder


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: digits\nbudgets: ['50.0%', '50%', 1.2ms]\nseed: 4\n")
    config = load_config(path, {"seed": 7})
    assert (config.task, config.seed, config.budgets) == ("digits", 7, ("50%", "1.2ms"))
    assert [str(b) for b in config.parsed_budgets()] == ["50%", "1.2ms"]


def test_budgets_without_a_latency_are_added_to_those_with_one(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("budgets: [50%, 33%, bytes:1MB]\n")
    config = load_config(path, {})
    assert config.budgets == ("50%", "33%", "bytes:1MB")
    assert [str(b) for b in config.parsed_budgets()] == ["50%,bytes:1MB", "33%,bytes:1MB"]
    assert load_config(None, config.model_dump(mode="json")) == config


def test_the_configuration_survives_its_own_file() -> None:
    config = RunConfig(budgets=("20%",), workers=3)
    assert load_config(None, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tsak": "digits"}, r"unknown key 'tsak'. Did you mean 'task'\? \(known: task, model"),
        ({"effort": "tiny"}, "effort: .*'small', 'medium' or 'large'"),
        ({"workers": 0}, "workers: .*greater than or equal to 1, got 0"),
        ({"budgets": []}, "budgets: .*at least 1 item"),
    ],
)
def test_wrong_options(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, given)


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("budgets: 50%,bytes:1MB\n")
    assert load_config(tmp_path / "run.yaml", {}).budgets == ("50%,bytes:1MB",)
    assert load_config(None, {"budgets": "1.2ms"}).budgets == ("1.2ms",)


@pytest.mark.parametrize("budget", ["0", "-1ms", "50", "abc", "bytes:0"])
def test_wrong_budgets(budget: str) -> None:
    with pytest.raises((ConfigError, BudgetError), match="50%"):
        load_config(None, {"budgets": [budget]})


def test_unknown_costs_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"budgets: unknown cost 'watts'\. Known: activation_bytes, bytes, latency"):
        load_config(None, {"budgets": ["watts:5"]})


def test_what_a_run_is_about_are_fields() -> None:
    assert set(FOUNDATION) | set(QUESTION) < set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads: yes\n", "run.yaml: threads: wants numbers .*; got True"),
        ("trial_timeout: on\n", "trial_timeout: wants numbers .*; got True"),
        ("resources: {cpu: yes}\n", "resources: wants numbers .*; got {'cpu': True}"),
        ("seed: 1\ntask: digits\nseed: 2\n", "run.yaml, line 3: .*key 'seed' is given twice"),
        ("schema: 99\nseed: 4\n", "run.yaml has schema 99; this version of autoprune reads 1"),
    ],
)
def test_nothing_in_a_file_is_ignored_or_read_as_something_else(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, {})


def test_the_file_of_a_run_folder_is_a_configuration(tmp_path: Path) -> None:
    config, folder = RunConfig(task="digits", seed=3), RunFolder(tmp_path)
    folder.write_config(config.model_dump(mode="json"))
    assert load_config(folder.config, {}) == config
