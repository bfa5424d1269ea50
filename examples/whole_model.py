"""A tour: transformers' own code made fast, weights by name, a model's initialisation as a small file.

Needs the packages transformers and safetensors; nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from paraminit_ext import InitPlan, Key, deferred_init, keyed, materialize_module, patch


def build() -> torch.nn.Module:
    """A Llama of random weights, small here; its sizes are a matter of the config alone."""
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
    # 1. Existing code, this package's fills: nothing of it is edited. The seed is torch's.
    torch.manual_seed(0)
    with patch():
        direct = build()

    # 2. The same, later: the code runs on meta and is recorded; each tensor is then filled once.
    torch.manual_seed(0)
    model = deferred_init(build)
    numel = sum(parameter.numel() for parameter in model.parameters())
    print(f"deferred: {next(model.parameters()).device}, {numel:,} parameters")
    materialize_module(model)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), direct.parameters(), strict=True))
    print(f"materialised: {next(model.parameters()).device}, equal to the one built directly: {same}")

    # 3. Under a key each parameter's numbers come from its name, and the plan of the model is a file.
    key = Key(2024)
    planned = deferred_init(build, key=key)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama.plan"
        InitPlan.of(planned).save(path)
        plan = InitPlan.load(path)
        print(f"the plan: {path.stat().st_size:,} bytes")
    print("\n".join(str(plan).splitlines()[:4]))

    # 4. It initialises any module with these names: in bfloat16 here, in place.
    half = plan.apply(build().bfloat16())
    materialize_module(planned)
    name = "model.layers.1.mlp.up_proj.weight"
    rounded = torch.equal(half.get_parameter(name), planned.get_parameter(name).bfloat16())
    print(f"applied to a bfloat16 module: the same values, rounded: {rounded}")

    # 5. One matrix alone, by the model's own law, without the rest.
    with keyed(half, key):
        torch.nn.init.normal_(half.get_parameter(name), std=0.02)
    again = torch.equal(half.get_parameter(name), planned.get_parameter(name).bfloat16())
    print(f"filled again by name: {again}")


if __name__ == "__main__":
    main()
