"""Real models in small configurations with random weights. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parents[1]
Build = Callable[[], nn.Module]

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 101,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _transformers(model: str, config: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        import transformers

        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**arguments))
        return built

    return build


def _llama() -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        **_TEXT,
        num_key_value_heads=2,
        pad_token_id=3,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    built: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return built


def _timm(name: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        import timm

        built: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **arguments)
        return built

    return build


def _example(name: str, kind: str, *arguments: Any) -> Build:
    def build() -> nn.Module:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        if name not in sys.modules:
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        built: nn.Module = getattr(sys.modules[name], kind)(*arguments)
        return built

    return build


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )


class _ResNet(nn.Module):
    """A ResNet that is initialised as in torchvision, with the last normalisation of each block at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layers = nn.Sequential(*(_Residual(16 << i, 32 << i, 2) for i in range(3)))
        self.fc = nn.Linear(128, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)
        for module in self.modules():
            if isinstance(module, _Residual):
                nn.init.constant_(module.bn2.weight, 0)


TORCH: dict[str, Build] = {
    "ResNet": _ResNet,
    "Transformer": lambda: nn.Transformer(64, 4, 2, 2, 96),
    "LSTM": lambda: nn.LSTM(48, 64, 2, bidirectional=True),
    "example: double_conv": _example("double_conv", "DoubleConv", 16, 64),
    "example: spatial_attention": _example("spatial_attention", "SpatialAttention", 49),
}
TRANSFORMERS: dict[str, Build] = {
    "Llama": _llama,
    "GPT-2": _transformers(
        "GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, vocab_size=101, n_positions=32
    ),
    "BERT": _transformers("BertForMaskedLM", "BertConfig", **_TEXT),
    "T5": _transformers(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        vocab_size=101,
    ),
    "ViT": _transformers("ViTForImageClassification", "ViTConfig", **_IMAGE),
    "Mamba": _transformers(
        "MambaForCausalLM", "MambaConfig", hidden_size=64, num_hidden_layers=2, vocab_size=101, state_size=8
    ),
    "Mixtral": _transformers(
        "MixtralForCausalLM", "MixtralConfig", **_TEXT, num_key_value_heads=2, num_local_experts=4
    ),
    "Whisper": _transformers(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        vocab_size=101,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "Qwen3": _transformers("Qwen3ForCausalLM", "Qwen3Config", **_TEXT, num_key_value_heads=2, head_dim=16),
    "Swin": _transformers(
        "SwinModel",
        "SwinConfig",
        image_size=32,
        patch_size=4,
        embed_dim=24,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    "wav2vec 2": _transformers(
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Config",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=[16, 16],
        conv_kernel=[3, 3],
        conv_stride=[2, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=20,
    ),
}
TIMM: dict[str, Build] = {
    "timm ViT": _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4),
    "timm ViT, JAX's initialisation": _timm(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=4,
        weight_init="jax",
    ),
    "timm ConvNeXt": _timm("convnext_atto", depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)),
    "timm ResNet": _timm("resnet18"),
    "timm Swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=24,
        depths=(1, 1),
        num_heads=(2, 4),
    ),
}
