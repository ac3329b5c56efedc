"""Published architectures with random weights, by name: run by `zoo.py`. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]
"""A model and its example inputs."""

_TORCHVISION = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
    "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "vit_b_16", "swin_t",
    "swin_v2_t", "maxvit_t",
)  # fmt: skip
_SIZES = {"inception_v3": 299, "vit_b_16": 224, "swin_t": 224, "maxvit_t": 224, "alexnet": 96}
_TIMM = """
vit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224 swin_tiny_patch4_window7_224
pvt_v2_b0 twins_svt_small cait_xxs24_224 xcit_nano_12_p16_224 coat_tiny crossvit_tiny_240 visformer_tiny convit_tiny
tnt_s_patch16_224 nest_tiny volo_d1_224 pit_ti_224 levit_128s davit_tiny focalnet_tiny_srf caformer_s18
mixer_s32_224 gmlp_s16_224 resmlp_12_224 sequencer2d_s poolformer_s12 poolformerv2_s12 convmixer_768_32
mobilevit_xxs mobilevitv2_050 edgenext_xx_small efficientformer_l1 efficientvit_b0 fastvit_t8 repvit_m0_9
convnextv2_atto inception_next_tiny ghostnet_100 ghostnetv2_100 res2net50_26w_4s resnest14d skresnet18 seresnet50
ecaresnet26t gcresnext26ts bat_resnext26ts halonet26t lambda_resnet26t botnet26t_256 cspresnet50 cspdarknet53
dpn68 hrnet_w18_small dla34 xception41 vovnet39a selecsls42b dm_nfnet_f0 resnetv2_50 repvgg_a0 mobileone_s0
rexnet_100 tinynet_e lcnet_050 fbnetc_100 hardcorenas_a mobilenetv4_conv_small
""".split()  # noqa: SIM905
_SHORT = (
    "beit_base_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "convit_tiny", "tnt_s_patch16_224",
)  # fmt: skip
"""Architectures of many equal blocks, of which 4 are built."""


class Logits(nn.Module):
    """A transformers model whose forward returns one tensor."""

    def __init__(self, model: nn.Module, output: str = "logits") -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """The chosen output of the model; one argument by name, since symbolic tracers refuse `*inputs`."""
        return getattr(self.model(x, return_dict=True), self.output)


class Pooled(nn.Module):
    """An encoder with a classifier on the mean of its tokens."""

    def __init__(self, model: nn.Module, width: int, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(width, 5)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, 5]`."""
        return self.head(self.model(x, **self.options)[0].mean(1))


_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
"""Sizes of a small transformer."""
_TEXT: dict[str, Any] = _LAYERS | {"vocab_size": 100}


def _tokens() -> Tensor:
    return torch.randint(0, 90, (2, 16))


def _transformers() -> dict[str, Callable[[], Built]]:
    return _encoders() | _decoders() | _of_signals()


def _encoders() -> dict[str, Callable[[], Built]]:
    hf: Any = import_module("transformers")  # in the extra `zoo`

    return {
        "bert": lambda: (Logits(hf.BertForSequenceClassification(hf.BertConfig(**_TEXT))), (_tokens(),)),
        "roberta": lambda: (Logits(hf.RobertaForSequenceClassification(hf.RobertaConfig(**_TEXT))), (_tokens(),)),
        "electra": lambda: (
            Logits(hf.ElectraForSequenceClassification(hf.ElectraConfig(**_TEXT, embedding_size=32))), (_tokens(),),
        ),
        "albert": lambda: (
            Logits(hf.AlbertForSequenceClassification(hf.AlbertConfig(**_TEXT, embedding_size=32))), (_tokens(),),
        ),
        "distilbert": lambda: (
            Logits(hf.DistilBertForSequenceClassification(hf.DistilBertConfig(
                n_layers=2, dim=64, n_heads=4, hidden_dim=128, vocab_size=100))), (_tokens(),),
        ),
        "t5_encoder": lambda: (
            Pooled(hf.T5EncoderModel(hf.T5Config(
                num_layers=2, d_model=64, num_heads=4, d_kv=16, d_ff=128, vocab_size=100)), 64), (_tokens(),),
        ),
    }  # fmt: skip


def _decoders() -> dict[str, Callable[[], Built]]:
    hf: Any = import_module("transformers")  # in the extra `zoo`

    llama = _TEXT | {"num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False, "tie_word_embeddings": False}
    return {
        "gpt2": lambda: (
            Logits(hf.GPT2LMHeadModel(hf.GPT2Config(
                n_layer=2, n_embd=64, n_head=4, vocab_size=100, use_cache=False))), (_tokens(),),
        ),
        "gpt_neox": lambda: (
            Logits(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_TEXT, use_cache=False))), (_tokens(),),
        ),
        "llama": lambda: (Logits(hf.LlamaForCausalLM(hf.LlamaConfig(**llama))), (_tokens(),)),
        "mistral": lambda: (Logits(hf.MistralForCausalLM(hf.MistralConfig(**llama))), (_tokens(),)),
        "qwen2": lambda: (Logits(hf.Qwen2ForCausalLM(hf.Qwen2Config(**llama))), (_tokens(),)),
        "qwen3": lambda: (Logits(hf.Qwen3ForCausalLM(hf.Qwen3Config(**llama, head_dim=16))), (_tokens(),)),
    }  # fmt: skip


def _of_signals() -> dict[str, Callable[[], Built]]:
    """Return transformers for sound and for images."""
    hf: Any = import_module("transformers")  # in the extra `zoo`

    image = _LAYERS | {"image_size": 64, "num_labels": 5}
    pixels = (torch.randn(2, 3, 64, 64),)
    return {
        "wav2vec2": lambda: (
            Logits(hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(
                **_TEXT, conv_dim=(32, 32, 32), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
                num_feat_extract_layers=3, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                mask_time_prob=0.0, layerdrop=0.0, classifier_proj_size=32))), (torch.randn(2, 1600),),
        ),
        "hf_vit": lambda: (Logits(hf.ViTForImageClassification(hf.ViTConfig(**image))), pixels),
        "deit": lambda: (Logits(hf.DeiTForImageClassification(hf.DeiTConfig(**image))), pixels),
        "dinov2": lambda: (Logits(hf.Dinov2ForImageClassification(hf.Dinov2Config(**image, patch_size=16))), pixels),
        "segformer": lambda: (Logits(hf.SegformerForImageClassification(hf.SegformerConfig(num_labels=5))), pixels),
    }  # fmt: skip


def names() -> list[str]:
    """Return all architectures, each as `library/name`."""
    hf = [f"transformers/{name}" for name in _transformers()]
    return [*(f"torchvision/{n}" for n in _TORCHVISION), *(f"timm/{n}" for n in _TIMM), *hf]


def build(name: str) -> Built:
    """Build an architecture with random weights and its example inputs; images are small where that is possible."""
    library, _, architecture = name.partition("/")
    torch.manual_seed(0)
    if library == "transformers":
        return _transformers()[architecture]()
    if library == "torchvision":
        import torchvision  # pyright: ignore[reportMissingImports]: in the extra `zoo`

        options = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(architecture, weights=None, num_classes=10, **options)
        size = _SIZES.get(architecture, 64)
        return model, (torch.randn(2, 3, size, size),)
    import timm  # pyright: ignore[reportMissingImports]: in the extra `zoo`

    options = {"depth": 4} if architecture in _SHORT else {}
    model: Any = timm.create_model(architecture, pretrained=False, num_classes=10, **options)
    channels, height, width = model.default_cfg["input_size"]
    fixed = model.default_cfg.get("fixed_input_size") or any(t in architecture for t in _FULL_SIZE)
    size = (height, width) if fixed else (min(height, 96), min(width, 96))
    return model, (torch.randn(2, channels, *size),)


_FULL_SIZE = (
    "vit", "mixer", "mlp", "swin", "pvt", "twins", "xcit", "coat", "former", "halo", "bot", "lambda", "levit", "nest",
    "volo", "pit", "sequencer", "eva", "deit", "beit", "tnt", "bat_", "focal", "davit",
)  # fmt: skip
