"""Examples that weights are fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.evaluation.calibration_examples import arithmetic_of, more_inputs
from autoprune.latency.stand_in import StandInTable
from autoprune.quantization.grid import LARGEST_SATURATING_WEIGHT, LARGEST_WEIGHT
from autoprune.runfolder import RunFolder
from autoprune.structure import analyze
from tests.task.toys import toy_task


@pytest.mark.parametrize(("shape", "columns", "wanted"), [((300,), 300, 300), ((50, 6), 6, 64), ((2000,), 2000, 64)])
def test_large_layers_have_a_row_for_each_input_where_examples_are_enough_for_that(
    shape: tuple[int, ...], columns: int, wanted: int
) -> None:
    """With 50 rows an example gives, or with more inputs than 1,024, the given examples are taken."""
    x = torch.randn(600, *shape)
    model = nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    task = toy_task(train_set=TensorDataset(x, torch.zeros(600, dtype=torch.long)), example_inputs=(x[:1],))
    given = (x[:64],)
    (inputs,) = more_inputs(task, analyze(model, (x[:1],)), given)
    assert inputs.shape == (wanted, *shape)
    assert (inputs is given[0]) == (wanted == 64)


@pytest.mark.parametrize(
    ("isa", "largest"), [(["avx2"], LARGEST_SATURATING_WEIGHT), (["avx2", "avx512_vnni"], LARGEST_WEIGHT)]
)
def test_a_run_without_a_latency_table_computes_as_the_device_of_its_dense_latency(
    isa: list[str], largest: int, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    assert arithmetic_of(folder).largest_weight == LARGEST_WEIGHT
    table = StandInTable(target={"isa": isa}, created="", dense_ms=1.0, noise=0.01, layers=())
    table.save(folder.dense_latency)
    assert arithmetic_of(folder).largest_weight == largest
