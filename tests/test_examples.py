"""The examples, the code in the README and the demonstration, run as their readers would run them."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import fresh
from paraminit_ext import Key

ROOT = Path(__file__).resolve().parents[1]
# Chance that a right sample fails one comparison of this file: a handful of them, seeds fixed.
FALSE_ALARM = 1e-9


def load(name: str) -> ModuleType:
    """The example of that name as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def assert_moments(sample: Tensor, mean: float, std: float, kurtosis: float) -> None:
    """Mean and deviation of the sample lie within the standard errors that FALSE_ALARM allows."""
    values, count = sample.detach().double().flatten(), sample.numel()
    quantile = float(stats.norm.isf(FALSE_ALARM / 4))
    assert abs(float(values.mean()) - mean) <= quantile * std / math.sqrt(count)
    deviation = math.sqrt(float((values - mean).square().mean()))
    assert abs(deviation - std) <= quantile * std * math.sqrt((kurtosis - 1) / (4 * count))


def test_spatial_attention_weights_a_map_by_place() -> None:
    layer = load("spatial_attention").SpatialAttention(generator=Key(1))
    image = torch.ones(2, 5, 16, 16)
    out = layer(image)
    assert out.shape == image.shape
    # The weight is a sigmoid of the channels' mean and maximum: the same for all channels, between 0 and 1.
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert ((out > 0) & (out < 1)).all()


def test_spatial_attention_parameters_have_what_reset_parameters_asks_for() -> None:
    # A window of 49 x 49 pixels has enough weights for moments to say something.
    layer = load("spatial_attention").SpatialAttention(kernel_size=49, generator=Key(2))
    bound = math.sqrt(6.0 / (2 * 49 * 49 + 1 * 49 * 49))
    weight = layer.conv.weight
    assert float(weight.detach().abs().max()) <= bound
    assert_moments(weight, 0.0, bound / math.sqrt(3), kurtosis=1.8)
    assert ((layer.conv.bias >= 0) & (layer.conv.bias < 1)).all()


def test_double_conv_parameters_have_what_initialize_weights_asks_for() -> None:
    model = load("double_conv").DoubleConv(3, 64, generator=Key(3))
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 64, 8, 8)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert_moments(module.weight, 0.0, math.sqrt(2.0 / (3 * 3 * 64)), kurtosis=3.0)
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones(64))
            assert torch.equal(module.bias, torch.zeros(64))


def test_moments_reject_a_deviation_one_percent_off() -> None:
    sample = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    assert_moments(sample, 0.0, 1.0, kurtosis=3.0)
    with pytest.raises(AssertionError):
        assert_moments(sample * 1.01, 0.0, 1.0, kurtosis=3.0)


@pytest.mark.parametrize(
    ("name", "build"), [("spatial_attention", "SpatialAttention"), ("double_conv", "DoubleConv")]
)
def test_a_key_gives_an_example_the_same_parameters_again(name: str, build: str) -> None:
    arguments = (4, 8) if name == "double_conv" else ()

    def parameters(seed: int) -> list[Tensor]:
        return [p.detach() for p in getattr(load(name), build)(*arguments, generator=Key(seed)).parameters()]

    first, again, other = parameters(7), parameters(7), parameters(8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["spatial_attention", "double_conv"])
def test_an_example_runs_as_a_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert "->" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of transformers, on being imported
def test_the_tour_of_a_whole_model_finds_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs transformers (make build)")
    load("whole_model").main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": True") for line in lines) == 3
    assert not any(line.endswith("False") for line in lines)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_example_of_a_mesh_finds_what_it_says(ranks: int) -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    done = fresh.run("-W", "ignore", *command, str(ROOT / "examples" / "sharded_model.py"))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert sum(line.endswith(": True") for line in lines) == 3
    assert lines[-1].startswith("save_initialized: 5 files, ")


@pytest.mark.filterwarnings("ignore")  # of torch.distributed, on being imported
@pytest.mark.parametrize("block", python_blocks("README.md"), ids=lambda block: block.partition("\n")[0][:40])
def test_a_block_of_the_readme_runs(block: str) -> None:
    exec(block, {})


def test_the_readme_shows_thirteen_ways_that_fill_the_parameter_they_are_given() -> None:
    page = next(block for block in python_blocks("README.md") if "filled = [" in block)
    lines = re.findall(r"^    init\.(\w+)\(", page, re.MULTILINE)
    assert len(lines) == len(set(lines)) == 13
    assert set(lines) <= {name for name in dir(nn.init) if name.endswith("_")}

    made: list[nn.Parameter] = []

    class Recorded(nn.Parameter):
        """A Parameter that is full of NaN, so that an element that is not written shows."""

        def __new__(cls, data: Tensor) -> nn.Parameter:  # type: ignore[misc]
            made.append(nn.Parameter(data.fill_(math.nan)))
            return made[-1]

    names: dict[str, Any] = {}
    exec(page.replace("from torch.nn import Parameter", ""), names | {"Parameter": Recorded}, names)
    filled = names["filled"]
    assert len(filled) == 13
    for line, given, returned in zip(lines, made, filled, strict=True):
        assert returned is given, line
        assert torch.isfinite(returned).all(), line


def test_the_demonstration_initialises_and_checks_a_toy_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    from paraminit_ext.__main__ import main

    for dtype in ("fp32", "bf16"):
        assert main(["demo", "--preset", "tiny", "--rounds", "1", "--dtype", dtype]) == 0
        printed = capsys.readouterr().out
        assert "Checked" in printed
        assert "the whole model" in printed


def test_the_demonstration_fails_when_one_tensor_is_not_what_was_asked_for() -> None:
    pytest.importorskip("rich")
    from paraminit_ext.cli import demo
    from paraminit_ext.cli.llama import Recipe

    asked_for = Recipe("toy", "normal_", (0.0, 0.02))
    sample = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 0.02
    broken = sample.clone()
    broken[17] = math.nan
    assert demo.check([("right", nn.Parameter(sample), asked_for)], quantile=6.0) == []
    for wrong in (sample * 1.1, sample + 0.002, broken):
        assert demo.check([("wrong", nn.Parameter(wrong), asked_for)], quantile=6.0) != []
