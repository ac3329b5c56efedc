import numpy as np

from autoprune.latency.parts import REST, layer_costs


def test_the_parts_of_a_prediction_add_up_to_it(table, structure_of):
    structure = structure_of("residual")
    policies = [structure.dense_policy(), *(sample.policy for sample in table.samples[:6])]
    parts = layer_costs(table, structure, policies)
    np.testing.assert_allclose([sum(part.values()) for part in parts], table.predictor(structure).predict(policies))
    weighted = {layer.module for layer in structure.layers}
    assert all({REST} < part.keys() and weighted & part.keys() for part in parts)
