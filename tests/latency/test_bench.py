import onnx
import pytest

from autoprune.errors import LatencyError
from autoprune.latency import bench as bench_module
from autoprune.latency.bench import make_bench, random_feeds
from autoprune.latency.onnx_model import Resizer
from autoprune.latency.target import make_target


class WrongResizer(Resizer):
    """Builds the largest model whatever the policy."""

    def resize(self, policy):
        full = {unit.name: unit.width for unit in self._structure.units}
        return super().resize(type(policy)(space_id=policy.space_id, widths=full))


class RefusingResizer(Resizer):
    """Cannot deal with the export."""

    def resize(self, policy):
        raise LatencyError("a weight without a name")


def test_models_are_resized_and_nothing_is_noted(net, structure_of, space_of, target):
    bench = make_bench(structure_of(net), space_of(net), target, seed=0, on_progress=None)
    assert bench.notes == ()


@pytest.mark.parametrize(("resizer", "reason"), [(WrongResizer, "differs"), (RefusingResizer, "without a name")])
def test_the_exporter_takes_over_when_resizing_cannot_be_proven(
    resizer, reason, structure_of, space_of, target, monkeypatch
):
    monkeypatch.setattr(bench_module, "Resizer", resizer)
    space = space_of("flat")
    bench = make_bench(structure_of("flat"), space, target, seed=0, on_progress=None)
    assert reason in bench.notes[0]
    small = onnx.load_model_from_string(bench.build(space.smallest()))
    assert sorted(tuple(i.dims) for i in small.graph.initializer if len(i.dims) == 4) == [(2, 1, 3, 3)]


def test_feeds_have_the_batch_of_the_target(structure_of):
    feeds = random_feeds(structure_of("flat"), make_target("ort-cpu", batch=5).batch)
    assert [value.shape for value in feeds] == [(5, 1, 8, 8)]
    assert feeds[0].std() > 0.5
