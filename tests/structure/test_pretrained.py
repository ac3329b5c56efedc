"""Models of Hugging Face in their own classes: configuration, checkpoints, and generation with a cache."""

import pytest
import torch

from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import analyze

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


@pytest.mark.parametrize(
    ("family", "options", "units"),
    [
        ("Phi3", {"intermediate_size": 48}, {"self_attn.qkv_proj": "head", "mlp.gate_up_proj": "channel"}),
        ("Mixtral", {"intermediate_size": 48, "num_local_experts": 2}, {"mlp.experts": "channel"}),
    ],
)
def test_joint_projections_and_experts_are_cut(family, options, units):
    config = getattr(transformers, f"{family}Config")(
        **CONFIGURED | {"num_hidden_layers": 1}, **TOKENS, num_key_value_heads=2, **options
    )
    structure = analyze(getattr(transformers, f"{family}ForCausalLM")(config).eval(), INPUTS)
    kinds = {unit.name: unit.kind for unit in structure.units}
    assert {f"model.layers.0.{name}": kind for name, kind in units.items()}.items() <= kinds.items()
    half = {unit.name: max(1, unit.width // 2) for unit in structure.units}
    structure.shrink(Policy(space_id="", widths=half))
    dense, cut = structure.params(structure.widths([structure.dense_policy(), Policy(space_id="", widths=half)]))
    assert cut < 0.4 * dense
