"""The form of pruned models is decided before anything costs time."""

import dataclasses

import pytest
import torch

import autoprune
from autoprune.errors import StructureError
from autoprune.pipeline.units import _count, decide_form
from autoprune.report import form_lines
from autoprune.runfolder import RunFolder, read_json
from autoprune.structure import analyze
from tests.backwards import Reversed
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


class Written(torch.nn.Module):
    """Has the width of its features in its forward."""

    def __init__(self, own_backward=False):
        super().__init__()
        self.features, self.head, self.own_backward = torch.nn.Linear(64, 12), torch.nn.Linear(12, 10), own_backward

    def forward(self, x):
        features = torch.relu(self.features(x.flatten(1))).reshape(-1, 12)
        return self.head(Reversed.apply(features) if self.own_backward else features)


class Lines(list):
    """Events that keep their notes."""

    note = list.append

    def stage(self, title):
        """Ignore."""


def refused():
    return dataclasses.replace(tiny.make_task(), build_model=lambda: Written(own_backward=True))


def test_a_model_whose_gradients_no_form_has_is_refused_before_the_search(tmp_path):
    measurer = SimulatedMeasurer()
    with pytest.raises(StructureError, match=r"does not compute the gradients .* the autograd function Reversed"):
        autoprune.search(refused(), run_dir=tmp_path, budgets=["50%"], measurer=measurer)
    assert not RunFolder(tmp_path).table.exists()
    assert not RunFolder(tmp_path).dense.exists()


def test_check_refuses_it_in_a_stage_of_its_own():
    from autoprune.config import load_config
    from autoprune.pipeline.check import check_up

    checkup = check_up(load_config(None, {"task": "tests.pipeline.test_units:refused"}), SimulatedMeasurer())
    outcomes = {finding.stage: finding for finding in checkup.findings}
    assert outcomes["shrink"].works
    assert outcomes["form"].works is False
    assert "the autograd function Reversed" in outcomes["form"].text
    assert outcomes["fine-tuning"].works is None


@pytest.mark.parametrize("model", [tiny.Net(), Written()], ids=["native", "graph"])
def test_the_form_and_its_reason_are_noted_kept_and_reported(model, tmp_path):
    folder, notes = RunFolder(tmp_path), Lines()
    structure = analyze(model, tiny.make_task().example_inputs)
    decide_form(structure, folder, notes)
    decide_form(structure, folder, notes)
    (line,), (reported,) = notes, form_lines({"form": read_json(folder.form)})
    if isinstance(model, Written):
        assert line.startswith("pruned models: graph module, because the model's own forward does not run")
        assert reported.startswith("PyTorch models are graph modules, because the model's own forward does not run")
    else:
        assert line == "pruned models: own classes"
        assert reported.startswith("PyTorch models have your own classes")
    assert form_lines({}) == []


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12"), (331_776, "332,000"), (1_234_567_890_123, "1.2e+12"), (10**400, "1e400")]
)
def test_policies_are_counted_as_people_write_numbers(number: int, text: str) -> None:
    assert _count(number) == text
