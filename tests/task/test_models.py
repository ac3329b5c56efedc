import pytest
import torch

from autoprune.task.builtin import MODELS
from autoprune.task.models import BasicBlock, InvertedResidual


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (1, 28, 10), (3, 32, 7)])
def test_every_model_takes_every_image(name, channels, size, classes):
    model = MODELS[name](channels, size, classes).train()
    logits = model(torch.rand(2, channels, size, size))
    assert logits.shape == (2, classes)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_published_sizes():
    sizes = {name: sum(p.numel() for p in make(1, 28, 10).parameters()) for name, make in MODELS.items()}
    # resnet20 has 0.27 M parameters in the literature (CIFAR-10), resnet8 78 k.
    assert sizes["resnet20"] == pytest.approx(0.27e6, rel=0.02)
    assert sizes["resnet8"] == pytest.approx(78e3, rel=0.01)
    assert sizes["resnet8-wide"] == pytest.approx(4 * sizes["resnet8"], rel=0.02)


def test_shortcuts_are_projections_only_where_the_shape_changes():
    assert isinstance(BasicBlock(8, 8, stride=1).shortcut, torch.nn.Identity)
    assert isinstance(BasicBlock(8, 16, stride=1).shortcut, torch.nn.Sequential)
    assert isinstance(BasicBlock(8, 8, stride=2).shortcut, torch.nn.Sequential)
    assert InvertedResidual(8, 8, stride=1, expand=2).has_shortcut
    assert not InvertedResidual(8, 8, stride=2, expand=2).has_shortcut


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(MODELS["mobilenet-tiny"](1, 8, 10).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
