import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.errors import TaskError, TrialError, UsageError
from autoprune.task.base import Task
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs
from tests.task.toys import toy_task, unlabelled_task


class Echo(nn.Module):
    def forward(self, x):
        return x


LOGITS = torch.eye(4)[torch.arange(40) % 4] * 5
RIGHT = torch.arange(40) % 4


def echo_task(targets=RIGHT, **changes) -> Task:
    data = TensorDataset(LOGITS, targets)
    sets = {"train_set": data, "val_set": data, "test_set": data}
    return toy_task(build_model=Echo, example_inputs=(LOGITS[:1],), **sets | changes)


def test_accuracy_by_hand():
    wrong_third = torch.where(torch.arange(40) < 10, (RIGHT + 1) % 4, RIGHT)
    task = echo_task(wrong_third)
    evaluation = evaluate(Echo(), task, task.val_set)
    assert evaluation.score == 0.75
    assert evaluation.divergence is None
    assert evaluation.examples == 40


def test_targets_that_losses_leave_out_are_neither_right_nor_wrong():
    targets = torch.where(torch.arange(40) < 10, -100, RIGHT)
    assert evaluate(Echo(), echo_task(targets), echo_task(targets).val_set).score == 1.0
    targets[10:15] = (targets[10:15] + 1) % 4
    assert evaluate(Echo(), echo_task(targets), echo_task(targets).val_set).score == pytest.approx(25 / 30)


def test_a_metric_or_an_item_that_fails_says_where():
    def reads_a_label(model, dataset):
        raise KeyError("label")

    class Torn(list):
        def __getitem__(self, row):
            raise OSError("60.png is truncated")

    task = toy_task(metric=reads_a_label)
    with pytest.raises(TaskError, match=r"failed: KeyError: 'label' \(test_scoring.py, line \d+: `raise KeyError"):
        evaluate(nn.Identity(), task, task.val_set)
    with pytest.raises(TaskError, match=r"item 0 of Torn cannot be read: OSError: 60.png is truncated \(test_scoring"):
        predict_outputs(nn.Identity(), task, Torn([0, 1]))


def test_equal_outputs_have_no_divergence_and_other_ones_do():
    task = echo_task()
    assert evaluate(Echo(), task, task.val_set, dense_outputs=LOGITS).divergence == pytest.approx(0, abs=1e-6)
    evaluation = evaluate(Echo(), task, task.val_set, dense_outputs=LOGITS.roll(1, dims=1))
    assert evaluation.divergence is not None
    assert evaluation.divergence > 1


def test_a_limit_takes_the_same_rows_of_outputs_targets_and_dense_outputs():
    task = echo_task()
    evaluation = evaluate(Echo(), task, task.val_set, dense_outputs=LOGITS, limit=7)
    assert evaluation.examples == 7
    assert evaluation.score == 1
    assert evaluation.divergence == pytest.approx(0, abs=1e-6)


def test_predicted_outputs_do_not_depend_on_the_batch_size():
    task = toy_task()
    torch.manual_seed(0)
    model = task.build_model().train()
    one, other = (predict_outputs(model, task, task.val_set, batch_size=size) for size in (3, 32))
    torch.testing.assert_close(one, other)
    assert one.shape == (32, 4)
    assert not one.requires_grad
    assert not model.training


def test_a_metric_of_the_users_own_sees_the_limited_data():
    task = echo_task(metric=lambda model, dataset: float(len(dataset)))
    passes = SamplePasses()
    assert evaluate(Echo(), task, task.val_set, limit=7, passes=passes).score == 7.0
    assert passes.total == pytest.approx(7 / 3)
    assert evaluate(Echo(), task, task.val_set, dense_outputs=LOGITS, passes=passes).score == 40.0
    assert passes.total == pytest.approx(7 / 3 + 2 * 40 / 3)


def test_closeness_is_the_metric_without_targets():
    task = unlabelled_task()
    torch.manual_seed(0)
    dense, other = task.build_model(), task.build_model()
    outputs = predict_outputs(dense, task, task.val_set)
    assert evaluate(dense, task, task.val_set, dense_outputs=outputs).score == pytest.approx(1)
    assert evaluate(other, task, task.val_set, dense_outputs=outputs).score < 0.99
    with pytest.raises(UsageError, match="pass `dense_outputs`"):
        evaluate(dense, task, task.val_set)


def test_dense_outputs_of_other_data_are_refused():
    task = echo_task()
    with pytest.raises(UsageError, match="40 items; there are 7"):
        evaluate(Echo(), task, task.val_set, dense_outputs=LOGITS[:7], limit=7)


@pytest.mark.parametrize(("value", "kind"), [({"top1": 0.5}, "dict"), ("good", "str"), (torch.zeros(2), "Tensor")])
def test_a_metric_that_is_no_number_is_refused(value, kind):
    strange = echo_task(metric=lambda model, dataset: value, metric_name="top1")
    with pytest.raises(TaskError, match=rf"the metric 'top1' must return one number; it returned {kind}"):
        evaluate(Echo(), strange, strange.val_set)


def test_what_is_not_finite_is_a_trial_error():
    task = echo_task()
    with pytest.raises(TrialError, match="outputs must be finite; 160 values are not"):
        predict_outputs(nn.Threshold(100.0, torch.nan), task, task.val_set)
    strange = echo_task(metric=lambda model, dataset: float("nan"), metric_name="top1")
    with pytest.raises(TrialError, match="the metric 'top1' must be finite; it is nan"):
        evaluate(Echo(), strange, strange.val_set)
