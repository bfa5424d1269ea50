"""A tour: faster initialisation of a transformers model, weights by name, an initialisation as a small file.

Needs the packages transformers and safetensors. It downloads nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from paraminit_ext import InitPlan, Key, deferred_init, keyed, materialize_module, patch


def build() -> torch.nn.Module:
    """Build a Llama with random weights. Its sizes, small here, depend only on the config."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def main() -> None:
    # 1. Existing code runs unchanged with this package's fills. torch's seed determines the values.
    torch.manual_seed(0)
    with patch():
        direct = build()

    # 2. The same, deferred: the code runs on meta and is recorded, then each tensor is filled once.
    torch.manual_seed(0)
    model = deferred_init(build)
    numel = sum(parameter.numel() for parameter in model.parameters())
    print(f"deferred: {next(model.parameters()).device}, {numel:,} parameters")
    materialize_module(model)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), direct.parameters(), strict=True))
    print(f"materialised: {next(model.parameters()).device}, equal to the one built directly: {same}")

    # 3. With a key, the values of a parameter depend on its name. The model's plan can be saved to a file.
    key = Key(2024)
    planned = deferred_init(build, key=key)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama.plan"
        InitPlan.of(planned).save(path)
        plan = InitPlan.load(path)
        print(f"the plan: {path.stat().st_size:,} bytes")
    print("\n".join(str(plan).splitlines()[:4]))

    # 4. The plan initialises any module with these names in place, here one in bfloat16.
    half = plan.apply(build().bfloat16())
    materialize_module(planned)
    name = "model.layers.1.mlp.up_proj.weight"
    rounded = torch.equal(half.get_parameter(name), planned.get_parameter(name).bfloat16())
    print(f"applied to a bfloat16 module: the same values, rounded: {rounded}")

    # 5. One matrix can be filled alone, with the same numbers as in the whole model.
    with keyed(half, key):
        torch.nn.init.normal_(half.get_parameter(name), std=0.02)
    again = torch.equal(half.get_parameter(name), planned.get_parameter(name).bfloat16())
    print(f"filled again by name: {again}")


if __name__ == "__main__":
    main()
