"""Models of Hugging Face in their own classes: configuration, checkpoints, and generation with a cache."""

import pytest
import torch

from autoprune.pruning import prune

transformers = pytest.importorskip("transformers")

CONFIGURED = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **CONFIGURED, **TOKENS, num_key_value_heads=2, intermediate_size=48, use_cache=False
    )
    return transformers.LlamaForCausalLM(config).eval()


INPUTS = {"input_ids": torch.arange(3, 13)[None]}


def test_the_configuration_follows_and_checkpoints_load(tmp_path):
    small = prune(language_model(), INPUTS, choose=lambda unit: "mlp" in unit)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    assert small.pruned_to.notes == ()
    assert small.config.intermediate_size == 24 == small.model.layers[0].mlp.intermediate_size
    small.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**INPUTS).logits, small(**INPUTS).logits)
    text = [
        m.generate(**INPUTS, max_new_tokens=5, do_sample=False, use_cache=use)
        for m in (small,)
        for use in (True, False)
    ]
    assert torch.equal(*text)


def test_a_configuration_without_one_value_for_all_layers_is_said_to_be_stale():
    small = prune(language_model(), INPUTS, choose=lambda unit: "layers.0.mlp" in unit)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    assert "from_pretrained would refuse" in small.pruned_to.notes[0]
    assert small.config.intermediate_size == 48
