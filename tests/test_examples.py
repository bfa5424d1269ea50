"""The examples, the code of the documentation and the demonstration, run as their readers would run them."""

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

import subprocesses
from paraminit_ext import Key

ROOT = Path(__file__).resolve().parents[1]
# The probability that a correct sample fails one of the few comparisons of this file. Seeds are fixed.
FALSE_ALARM = 1e-9


def load(name: str) -> ModuleType:
    """Import the example of that name as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def assert_moments(sample: Tensor, mean: float, std: float, kurtosis: float) -> None:
    """Check that mean and deviation of the sample are within the standard errors that FALSE_ALARM allows."""
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
    # A window of 49 x 49 pixels has enough weights for a test of their moments.
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


@pytest.mark.filterwarnings("ignore")  # transformers warns when it is imported
def test_the_tour_of_a_whole_model_finds_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs transformers (make build)")
    load("whole_model").main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": True") for line in lines) == 3
    assert not any(line.endswith("False") for line in lines)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_example_of_a_mesh_finds_what_it_says(ranks: int) -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    done = subprocesses.run("-W", "ignore", *command, str(ROOT / "examples" / "sharded_model.py"))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert sum(line.endswith(": True") for line in lines) == 3
    assert lines[-1].startswith("save_initialized: 5 files, ")


PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in python_blocks(page)]


@pytest.mark.filterwarnings("ignore")  # torch.distributed warns when it is imported
@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page}: {block.partition(chr(10))[0][:40]}" for page, block in BLOCKS]
)
def test_a_block_of_the_documentation_runs(page: str, block: str) -> None:
    exec(compile(block, page, "exec", dont_inherit=True), {})


def test_every_guide_has_a_block_that_runs_or_a_command() -> None:
    guides = [page for page in PAGES if page.startswith("docs/guide/")]
    assert len(guides) >= 8
    for page in guides:
        assert re.search(r"^```(python|sh)$", (ROOT / page).read_text(), re.MULTILINE), page


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md"])
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_the_guide_shows_thirteen_ways_that_fill_the_parameter_they_are_given() -> None:
    page = next(block for block in python_blocks("docs/guide/drop_in.md") if "filled = [" in block)
    lines = re.findall(r"^    init\.(\w+)\(", page, re.MULTILINE)
    assert len(lines) == len(set(lines)) == 13
    assert set(lines) <= {name for name in dir(nn.init) if name.endswith("_")}

    created: list[nn.Parameter] = []

    class Recorded(nn.Parameter):
        """A Parameter full of NaN, so that elements that are never written are visible."""

        def __new__(cls, data: Tensor) -> nn.Parameter:  # type: ignore[misc]
            created.append(nn.Parameter(data.fill_(math.nan)))
            return created[-1]

    names: dict[str, Any] = {}
    exec(page.replace("from torch.nn import Parameter", ""), names | {"Parameter": Recorded}, names)
    filled = names["filled"]
    assert len(filled) == 13
    for line, parameter, returned in zip(lines, created, filled, strict=True):
        assert returned is parameter, line
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
    from paraminit_ext.cli.demo_model import Recipe

    asked_for = Recipe("toy", "normal_", (0.0, 0.02))
    sample = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 0.02
    broken = sample.clone()
    broken[17] = math.nan
    assert demo.check([("right", nn.Parameter(sample), asked_for)], quantile=6.0) == []
    for wrong in (sample * 1.1, sample + 0.002, broken):
        assert demo.check([("wrong", nn.Parameter(wrong), asked_for)], quantile=6.0) != []
