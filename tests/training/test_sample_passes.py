from autoprune.training.sample_passes import SamplePasses


def test_a_forward_pass_is_a_third_of_a_training_pass_and_cost_scales_both():
    passes = SamplePasses()
    assert passes.total == 0
    passes.training(30)
    passes.forward(30)
    assert passes.total == 40
    passes.training(10, relative_cost=0.5)
    passes.forward(30, relative_cost=0.1)
    assert passes.total == 46
