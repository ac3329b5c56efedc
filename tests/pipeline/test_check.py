"""`check`: outcomes are told as they come, and steps of large models have few examples."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune import Task, memory_limits
from autoprune.config import load_config
from autoprune.pipeline.check import check_up
from autoprune.pipeline.dense import affordable_examples, seconds_per_pass
from autoprune.pipeline.rehearsal import Rehearsed
from autoprune.report import check_header, check_row
from autoprune.report.checks import Finding
from tests.measurers import SimulatedMeasurer

TINY = {"task": "tests.pipeline.tiny:make_task"}
STAGES = [
    "task", "data, model, loss", "dense model", "trace and units", "shrink", "form", "fine-tuning", "evaluation",
    "ONNX export", "equal outputs", "latency", "time of a sample pass", "short trials",
]  # fmt: skip


class Recording(nn.Sequential):
    """Keeps the number of examples of every call."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return super().forward(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Recording(nn.Linear(8, 256), nn.Sigmoid(), nn.Linear(256, 3))


def task_of(net, examples=100):
    data = TensorDataset(torch.randn(examples, 8), torch.randint(0, 3, (examples,)))
    return Task(
        build_model=lambda: net, example_inputs=(torch.zeros(1, 8),), train_set=data, val_set=data, test_set=data,
        loss=nn.functional.cross_entropy,
    )  # fmt: skip


def test_each_outcome_is_told_before_the_next_stage_begins():
    told = []
    checkup = check_up(
        load_config(None, TINY), SimulatedMeasurer(), on_stage=told.append, on_finding=lambda each: told.append(each)
    )
    assert checkup.works, checkup.findings
    assert told[::2] == STAGES
    assert tuple(told[1::2]) == checkup.findings
    assert [finding.stage for finding in checkup.findings] == STAGES


def test_steps_have_few_examples_where_many_need_much_memory(monkeypatch):
    monkeypatch.setattr("autoprune.pipeline.check.rehearsed_times", lambda *given: Rehearsed(times=given[-1]))

    def findings():
        checkup = check_up(load_config(None, TINY), SimulatedMeasurer())
        assert checkup.works, checkup.findings
        assert all(estimate.seconds > 0 for estimate in checkup.estimates)
        return {finding.stage: finding.text for finding in checkup.findings}

    assert "to save memory" not in findings()["fine-tuning"]
    monkeypatch.setattr(memory_limits, "CHECK_STEP_BYTES", 1)
    small = findings()
    assert small["fine-tuning"].startswith("4 examples (a step has 2, not ")
    assert "on 32 examples" in small["evaluation"]


def test_kept_tensors_decide_how_many_examples_a_step_has(net, monkeypatch):
    few = torch.randn(2, 8)
    kept = 2 * (8 + 256) * 4  # the inputs of both linear layers, of two examples; weights are not counted
    for examples in (5, 50):
        monkeypatch.setattr(memory_limits, "CHECK_STEP_BYTES", examples * kept // 2)
        assert affordable_examples(net, [few]) == examples
    monkeypatch.setattr(memory_limits, "CHECK_STEP_BYTES", 1)
    assert affordable_examples(net, [few]) == 2


def test_a_sample_pass_of_a_small_model_is_timed_at_64_examples(net):
    assert 0 < seconds_per_pass(task_of(net), net) < 0.1
    assert set(net.calls[2:]) == {64}


def test_a_sample_pass_of_a_large_model_is_timed_at_few_examples(net, monkeypatch):
    monkeypatch.setattr(memory_limits, "CHECK_STEP_BYTES", 5 * (8 + 256) * 4)
    assert seconds_per_pass(task_of(net), net) > 0
    assert max(net.calls) == 5
    net.calls.clear()
    monkeypatch.setattr(memory_limits, "CHECK_STEP_BYTES", 1)
    assert seconds_per_pass(task_of(net), net) > 0
    assert max(net.calls) == 2


def test_a_sample_pass_of_a_task_with_one_example(net):
    assert seconds_per_pass(task_of(net, examples=1), net) > 0
    assert set(net.calls) == {1}


def test_threads_are_as_before(net):
    before = torch.get_num_threads()
    seconds_per_pass(task_of(net), net)
    assert torch.get_num_threads() == before


def test_rows_are_below_each_other(capsys):
    from rich.console import Console

    console = Console(width=80)
    console.print(check_header())
    for works, text in ((True, "short"), (None, "long " * 40), (False, "[red] is text")):
        console.print(check_row(Finding(stage="data, model, loss", works=works, text=text, seconds=0.25)))
    lines = capsys.readouterr().out.splitlines()
    places = {tuple(i for i, c in enumerate(line) if c in "│┃┼╇") for line in lines[1:] if line.strip("━ ")}
    assert "[red] is text" in lines[-1]
    assert all(len(line) <= 80 for line in lines)
    assert len(places - {()}) == 1
