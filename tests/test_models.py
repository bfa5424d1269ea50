"""Real models have stock's laws under ``patch()``, and the same bits direct, deferred, keyed and from a file.

Kolmogorov's test compares each tensor as stock fills it with the same tensor as we fill it. If values repeat
(a row of zeros), the test is conservative. An alarm is a p-value below 1e-6. All p-values are counted, and
the last test bounds the probability that correct code fails here. Seeds are fixed, so a test that passes once
always passes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from module_equality import differences, patched, seeded, tensors
from paraminit_ext import InitPlan, Key, deferred_init, keyed, materialize_module
from zoo import TIMM, TORCH, TRANSFORMERS, Build

KEY = Key(2026)
ALARM = 1e-6
# The upper limit for the number of p-values.
COUNT = 2000
counted = 0


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package} (make models)")


every_model = pytest.mark.parametrize(
    "build",
    [
        *(pytest.param(build, id=name) for name, build in TORCH.items()),
        *(pytest.param(build, id=name, marks=needs("transformers")) for name, build in TRANSFORMERS.items()),
        *(pytest.param(build, id=name, marks=needs("timm")) for name, build in TIMM.items()),
    ],
)
# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")


def p_values(stock: nn.Module, ours: nn.Module) -> dict[str, float]:
    """Return each tensor's p-value of having one law in both modules; tensors with equal values have none."""
    scores: dict[str, float] = {}
    left, right = tensors(stock), tensors(ours)
    assert left.keys() == right.keys()
    for name in left:
        a, b = (tensor.detach().double().flatten() for tensor in (left[name], right[name]))
        assert a.shape == b.shape, name
        if torch.equal(a, b):
            continue
        scores[name] = float(stats.ks_2samp(a.numpy(), b.numpy(), method="asymp").pvalue)
    return scores


@every_model
def test_under_patch_every_tensor_has_stocks_law(build: Build) -> None:
    global counted
    scores = p_values(seeded(build, 1), patched(build, 2))
    assert scores
    counted += len(scores)
    assert not {name: p for name, p in scores.items() if p < ALARM}


@pytest.mark.parametrize("name", ["Transformer", "LSTM", "ResNet"])
def test_a_deviation_that_is_a_fifth_off_is_found(name: str) -> None:
    stock, ours = seeded(TORCH[name], 1), patched(TORCH[name], 2)
    largest = max(dict(ours.named_parameters()).items(), key=lambda item: item[1].numel())
    with torch.no_grad():
        largest[1].mul_(1.2)
    assert p_values(stock, ours)[largest[0]] < ALARM


@every_model
def test_the_same_seed_gives_the_same_bits_and_nothing_stays_patched(build: Build) -> None:
    before = {name: getattr(nn.init, name) for name in dir(nn.init)}
    codes = {name: function.__code__ for name, function in before.items() if hasattr(function, "__code__")}
    assert not differences(patched(build, 7), patched(build, 7))
    assert before == {name: getattr(nn.init, name) for name in before}
    assert codes == {name: before[name].__code__ for name in codes}
    # Stock draws its own numbers again.
    again = seeded(build, 7)
    assert not differences(again, seeded(build, 7))


@every_model
def test_deferred_init_gives_the_bits_of_direct_building(build: Build) -> None:
    direct, deferred = patched(build), seeded(lambda: deferred_init(build))
    assert all(tensor.is_meta for tensor in tensors(deferred).values())
    assert not differences(direct, materialize_module(deferred))


@every_model
def test_a_plan_from_a_file_gives_the_bits_of_deferred_init(build: Build, tmp_path: Path) -> None:
    module = deferred_init(build, key=KEY)
    plan = InitPlan.of(module)
    assert not [entry.name for entry in plan if not entry.steps and not entry.tie]
    plan.save(tmp_path / "plan")
    materialize_module(module)
    loaded = InitPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert not differences(loaded.apply(seeded(build, 3)), module)
    # In bfloat16 every parameter is the rounded float32 value. Buffers are not compared.
    half = materialize_module(deferred_init(build, key=KEY), dtype=torch.bfloat16)
    for name, tensor in half.named_parameters():
        assert torch.equal(tensor, module.get_parameter(name).bfloat16()), name


def initialise_again(model: Any) -> None:
    """Run the model's own initialisation again."""
    if hasattr(model, "init_weights"):
        for part in (*model.modules(), *model.parameters(), *model.buffers()):
            part.__dict__.pop("_is_hf_initialized", None)
        model.init_weights()
    elif hasattr(model, "_reset_parameters"):
        model._reset_parameters()
    else:
        model.reset_parameters()


@pytest.mark.parametrize(
    ("build", "names"),
    [
        pytest.param(build, names, id=name, marks=needs("transformers" if name in TRANSFORMERS else "torch"))
        for name, build, names in (
            ("LSTM", TORCH["LSTM"], "weight bias"),
            (
                "Transformer",
                TORCH["Transformer"],
                "linear1.weight linear2.weight in_proj_weight out_proj.weight",
            ),
            ("Llama", TRANSFORMERS["Llama"], "weight"),
            ("GPT-2", TRANSFORMERS["GPT-2"], "weight bias"),
            ("BERT", TRANSFORMERS["BERT"], "weight bias"),
            ("T5", TRANSFORMERS["T5"], "weight"),
            ("ViT", TRANSFORMERS["ViT"], "weight bias"),
            ("Mixtral", TRANSFORMERS["Mixtral"], "weight proj"),
            ("Whisper", TRANSFORMERS["Whisper"], "weight bias"),
            ("Qwen3", TRANSFORMERS["Qwen3"], "weight"),
        )
    ],
)
def test_keyed_gives_the_bits_of_deferred_init(build: Build, names: str) -> None:
    deferred, model = materialize_module(deferred_init(build, key=KEY)), seeded(build)
    with keyed(model, KEY):
        initialise_again(model)
    all_tensors = list(tensors(model).values())
    compared = [
        name
        for name, parameter in model.named_parameters()
        # An already built model fills a tied parameter twice, with two laws.
        if any(word in name for word in names.split())
        and sum(tensor is parameter for tensor in all_tensors) == 1
    ]
    assert compared
    for name in compared:
        assert torch.equal(model.get_parameter(name), deferred.get_parameter(name)), name


@needs("transformers")
@pytest.mark.parametrize("guard_first", [True, False])
def test_transformers_guard_composes_from_either_side(guard_first: bool) -> None:
    from transformers.initialization import guard_torch_init_functions

    from paraminit_ext import patch

    def build() -> nn.Module:
        contexts = guard_torch_init_functions(), patch()
        first, second = contexts if guard_first else contexts[::-1]
        with first, second:
            return seeded(lambda: nn.Transformer(16, 2, 1, 1, 16))

    assert not differences(build(), patched(lambda: nn.Transformer(16, 2, 1, 1, 16)))


@needs("transformers")
@pytest.mark.parametrize("inside", [True, False])
def test_transformers_no_init_weights_composes_from_either_side(inside: bool) -> None:
    from transformers.initialization import no_init_weights

    from paraminit_ext import patch

    before = nn.init.normal_
    with patch(key=KEY) if inside else no_init_weights(), no_init_weights() if inside else patch(key=KEY):
        TRANSFORMERS["GPT-2"]()
    assert nn.init.normal_ is before


@needs("transformers")
def test_from_pretrained_loads_what_is_there_and_fills_what_is_not(tmp_path: Path) -> None:
    import transformers

    from paraminit_ext import init, patch

    model: Any = patched(TRANSFORMERS["BERT"])
    model.bert.save_pretrained(tmp_path)
    with patch(key=KEY):
        loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert (
        torch.equal(loaded.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
        if model.bert.pooler
        else True
    )
    name = "cls.predictions.transform.dense.weight"
    std = model.config.initializer_range
    fills = [init.normal_(torch.empty(64, 64), 0.0, std, generator=KEY.fold_in(n)) for n in range(4)]
    assert any(torch.equal(loaded.get_parameter(name), fill) for fill in fills)
    assert torch.equal(
        loaded.get_parameter("bert.embeddings.word_embeddings.weight"),
        model.get_parameter("bert.embeddings.word_embeddings.weight"),
    )


@needs("accelerate")
@pytest.mark.parametrize("first", [True, False])
def test_accelerates_empty_weights_are_empty(first: bool) -> None:
    from accelerate import init_empty_weights

    from paraminit_ext import patch

    with patch() if first else init_empty_weights(), init_empty_weights() if first else patch():
        module = TRANSFORMERS["GPT-2"]()
    assert all(parameter.is_meta for parameter in module.parameters())


@needs("peft")
def test_adapters_of_peft_are_ours_and_deferred() -> None:
    import peft

    def build() -> nn.Module:
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        adapted: nn.Module = peft.get_peft_model(TRANSFORMERS["Llama"](), config)
        return adapted

    direct = patched(build)
    scores = p_values(seeded(build, 1), direct)
    assert any("lora_A" in name for name in scores)
    assert min(scores.values()) >= ALARM
    assert not differences(direct, materialize_module(seeded(lambda: deferred_init(build))))


@needs("lightning_fabric")
@pytest.mark.parametrize("first", [True, False])
def test_fabrics_init_module_composes_from_either_side(first: bool) -> None:
    from lightning_fabric import Fabric

    from paraminit_ext import patch

    fabric = Fabric(accelerator="cpu", devices=1)
    with patch() if first else fabric.init_module(), fabric.init_module() if first else patch():
        module = seeded(TORCH["LSTM"])
    assert not differences(module, patched(TORCH["LSTM"]))


@needs("timm")
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("trunc_normal_", {"mean": 0.5, "std": 2.0}),
        ("trunc_normal_tf_", {"mean": 0.5, "std": 2.0}),
        ("lecun_normal_", {}),
    ],
)
def test_timms_truncated_normals_are_ours(name: str, keywords: dict[str, float]) -> None:
    import timm.layers

    from paraminit_ext import init, patch

    with patch(key=KEY):
        filled: Tensor = torch.empty(40, 30)
        getattr(timm.layers, name)(filled, **keywords)
    own = KEY.fold_in(0)
    std = 30**-0.5 / 0.87962566103423978
    expected = {
        "trunc_normal_": lambda t: init.trunc_normal_(t, 0.5, 2.0, generator=own),
        "trunc_normal_tf_": lambda t: init.trunc_normal_(t, 0.5, 2.0, -3.5, 4.5, generator=own),
        "lecun_normal_": lambda t: init.trunc_normal_(t, 0.0, std, -2 * std, 2 * std, generator=own),
    }[name](torch.empty(40, 30))
    assert torch.equal(filled, expected)


def test_the_chance_of_a_false_alarm_is_small() -> None:
    assert counted <= COUNT
    assert COUNT * ALARM <= 2e-3
