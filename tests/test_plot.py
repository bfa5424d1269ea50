"""``plot()`` counts what the laws, NumPy and torch give, and draws readable figures.

Pearson's chi-square of a panel's counts checks the laws. Its law is a limit law, so bins with fewer than 20
expected elements are pooled. The outermost edges are the extremes of the sample, which moves about one
element.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import subprocesses
from paraminit_ext import InitPlan, Key, deferred_init, materialize_module
from paraminit_ext.models import plot_data, plot_figure
from paraminit_ext.models.plan import plan_and_path
from paraminit_ext.models.plot import plot
from paraminit_ext.models.plot_data import Panel, Panels, State, panels_of
from zoo import TORCH, TRANSFORMERS

mpl = pytest.importorskip("matplotlib", reason="needs matplotlib (make build)")
# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")

# The probability that a correct sample fails one of about a dozen comparisons; seeds are fixed.
FALSE_ALARM = 1e-9
ONE_LINE = r"^paraminit_ext\.plot: expected [^\n]*, got [^\n]*\. [^\n]*\.$"


class Holder(nn.Module):
    """Parameters of one shape, each filled by the function given under its name."""

    def __init__(self, *shape: int, **fills: Callable[[Tensor], Any]) -> None:
        super().__init__()
        for name, fill in fills.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            fill(self.get_parameter(name))


class Stack(nn.Module):
    """Layers of one shape, each with its own standard deviation; norms, a tied head, buffers."""

    def __init__(self, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.embedding = nn.Embedding(50, width, padding_idx=3)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.linspace(0, 1, 9))
        self.register_buffer("steps", torch.arange(3))
        for number in range(layers):
            nn.init.normal_(self.get_parameter(f"layers.{number}.weight"), std=0.1 * (number + 1))
            nn.init.zeros_(self.get_parameter(f"layers.{number}.bias"))


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the materialised module, which has a plan."""
    return materialize_module(deferred_init(build, key=Key(1)))


def counted(module: nn.Module | Path, before: nn.Module | Path | None = None) -> Panels:
    plan = InitPlan.of(module) if isinstance(module, nn.Module) and plan_and_path(module) else None
    return panels_of(State(module), State(before) if before else None, plan)


def by_kind(found: Panels) -> dict[tuple[str, tuple[int, ...]], Panel]:
    return {(panel.pattern, panel.shape): panel for panel in found.panels}


def expected_counts(panel: Panel) -> list[float]:
    """Return counts by Simpson's rule; in bins of a fifth of a deviation its error is below 1e-5 of a bin."""
    bins, density = panel.bins, panel.asked_density
    width, total = bins.width, sum(panel.now.counts) + (panel.now.zeros or 0)
    # Stay just inside the last edge, because the law may end there.
    ends = [*bins.edges[:-1], math.nextafter(bins.high, bins.low)]
    return [
        total * width * (density(left) + 4 * density((left + right) / 2) + density(right)) / 6
        for left, right in itertools.pairwise(ends)
    ]


def p_value(panel: Panel) -> float:
    """Return the p-value of the counts under the requested density."""
    kept = [pair for pair in zip(expected_counts(panel), panel.now.counts, strict=True) if pair[0] >= 20]
    total = sum(panel.now.counts)
    rest = total - sum(e for e, _ in kept), total - sum(c for _, c in kept)
    pairs = [*kept, rest] if rest[0] >= 20 else kept
    statistic = sum((count - expected) ** 2 / expected for expected, count in pairs)
    return float(stats.chi2.sf(statistic, len(pairs) - 1))


# ----------------------------------------------------------------------------------------
# The requested density
# ----------------------------------------------------------------------------------------

LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda t: nn.init.normal_(t, 0.1, 0.02),
    "uniform": lambda t: nn.init.uniform_(t, -0.3, 0.5),
    "trunc_normal": lambda t: nn.init.trunc_normal_(t, std=1.0, a=-2.0, b=1.0),
    "kaiming": lambda t: nn.init.kaiming_uniform_(t, a=5**0.5),
    "sparse": lambda t: nn.init.sparse_(t, 0.75, std=0.05),
}


@pytest.mark.parametrize("law", LAWS)
def test_counts_have_the_requested_density(law: str) -> None:
    model = built(lambda: Holder(1024, 1024, weight=LAWS[law]))
    (panel,) = counted(model).panels
    assert p_value(panel) > FALSE_ALARM
    # The bins hold the whole density, except the mass beyond the extremes.
    share = 0.25 if law == "sparse" else 1.0
    assert sum(expected_counts(panel)) == pytest.approx(share * 1024**2, rel=2e-5)
    assert sum(panel.now.densities(panel.bins)) * panel.bins.width == pytest.approx(share)


@pytest.mark.parametrize("law", LAWS)
def test_a_deviation_that_is_a_fifth_too_large_has_another_density(law: str) -> None:
    model = built(lambda: Holder(1024, 1024, weight=LAWS[law]))
    with torch.no_grad():
        model.get_parameter("weight").mul_(1.2)
    (panel,) = counted(model).panels
    assert p_value(panel) < FALSE_ALARM


def test_layers_of_several_deviations_have_their_mixture() -> None:
    (panel,) = [one for one in counted(built(lambda: Stack(width=256))).panels if "layers" in one.pattern]
    assert panel.names == tuple(f"layers.{number}.weight" for number in range(4))
    assert sorted(law.std for law in panel.laws) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert p_value(panel) > FALSE_ALARM


def zero_rows(tensor: Tensor) -> None:
    nn.init.normal_(tensor)
    with torch.no_grad():
        tensor[3:7].zero_()
        tensor[5:9].zero_()


def test_constants_in_places_take_their_share_of_the_law() -> None:
    (panel,) = counted(built(lambda: Holder(600, 1000, weight=zero_rows))).panels
    # Six rows are zero; two of them are zeroed twice.
    (asked,) = panel.asked
    assert asked is not None
    assert asked.share == pytest.approx(594 / 600)
    assert panel.now.zeros == 6000
    assert p_value(panel) > FALSE_ALARM


def test_a_tensor_that_is_not_just_a_random_fill_has_no_law() -> None:
    def scaled(tensor: Tensor) -> None:
        nn.init.normal_(tensor)
        with torch.no_grad():
            tensor.mul_(3)

    found = counted(built(lambda: Holder(64, 64, a=scaled, b=nn.init.eye_, c=nn.init.normal_)))
    assert [bool(panel.laws) for panel in found.panels] == [False, False, True]
    assert [panel.asked_density(0.0) > 0 for panel in found.panels] == [False, False, True]


def test_a_plan_gives_the_requested_laws_of_another_module() -> None:
    plan = InitPlan.of(deferred_init(Stack, key=Key(2)))
    module = Stack()
    assert not any(panel.laws for panel in panels_of(State(module)).panels)
    assert all(panel.laws for panel in panels_of(State(module), None, plan).panels)
    with pytest.raises(ValueError, match=ONE_LINE):
        panels_of(State(nn.Linear(3, 3)), None, plan)


# ----------------------------------------------------------------------------------------
# Counts
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_counts_are_numpys(dtype: torch.dtype) -> None:
    values = torch.randn(37, 91, dtype=torch.float64).to(dtype)
    module = nn.Module()
    module.weight = nn.Parameter(values, requires_grad=False)
    (panel,) = counted(module).panels
    histogram = panel.now
    exact = values.double().numpy()
    if histogram.zeros is not None:
        assert histogram.zeros == int((exact == 0).sum())
        exact = exact[exact != 0]
    assert (panel.bins.edges[0], panel.bins.edges[-1]) == panel.bins[:2]
    expected, _ = np.histogram(exact, panel.bins.edges)
    # Bins are computed in float32, so an element on an edge may be in either of two bins. For numbers below 4
    # each of the four roundings (element, edge, difference, quotient) is at most 2^-22: 1e-6 in total.
    assert sum(histogram.counts) == exact.size
    moved = np.abs(np.cumsum(expected) - np.cumsum(histogram.counts))
    on_edges = sum(int(np.isclose(exact, edge, rtol=0, atol=1e-6).sum()) for edge in panel.bins.edges)
    assert moved.sum() <= on_edges
    assert panel.bins[:2] == (float(values.double().min()), float(values.double().max()))


def test_an_element_far_out_is_in_a_bin_of_its_own() -> None:
    module = Holder(200, 200, weight=nn.init.normal_)
    with torch.no_grad():
        module.get_parameter("weight")[7, 8] = 500.0
    (panel,) = counted(module).panels
    assert panel.now.counts[-1] == 1
    assert panel.bins.high == 500.0
    # More bins than for a tensor without it, but no more than the maximum.
    assert panel.bins.number == 240
    assert counted(Holder(200, 200, weight=nn.init.normal_)).panels[0].bins.number == 60


def test_nan_and_inf_are_counted_apart() -> None:
    module = Holder(20, 20, weight=nn.init.normal_, other=nn.init.normal_)
    with torch.no_grad():
        module.get_parameter("weight")[0, :3] = math.nan
        module.get_parameter("weight")[1, 0] = -math.inf
        module.get_parameter("other").fill_(math.nan)
    weight, other = counted(module).panels
    assert (weight.now.statistics.nans, weight.now.statistics.infinities) == (3, 1)
    assert sum(weight.now.counts) == 396
    assert sum(other.now.counts) == 0
    assert other.now.statistics.nans == 400


def test_parameters_are_grouped_by_name_and_shape_and_constants_are_listed() -> None:
    found = counted(built(Stack))
    assert set(by_kind(found)) == {("layers.*.weight", (32, 32)), ("embedding.weight", (50, 32))}
    assert [(one.pattern, one.value, one.number) for one in found.constants] == [
        ("layers.*.bias", 0.0, 4),
        ("norms.*.weight", 1.0, 4),
        ("norms.*.bias", 0.0, 4),
    ]
    # The tied head counts once, and buffers do not count.
    assert found.elements == sum(p.numel() for p in Stack().parameters())
    convolutions = [panel for panel in counted(TORCH["ResNet"]()).panels if "conv1" in panel.pattern]
    assert [panel.shape for panel in convolutions] == [
        (16, 3, 7, 7),
        (32, 16, 3, 3),
        (64, 32, 3, 3),
        (128, 64, 3, 3),
    ]


def test_a_constant_layer_among_others_is_shown() -> None:
    module = Stack()
    with torch.no_grad():
        module.get_parameter("layers.2.weight").zero_()
    found = counted(module)
    assert "layers.*.weight" in {panel.pattern for panel in found.panels}
    (depth,) = [one for one in found.depths if one.pattern == "layers.*.weight"]
    assert depth.now[2] == 0.0


def test_deviations_are_listed_by_layer_number() -> None:
    model = built(Stack)
    (depth,) = counted(model).depths
    assert depth.pattern == "layers.*.weight"
    assert depth.layers == (0, 1, 2, 3)
    assert depth.asked == pytest.approx([0.1, 0.2, 0.3, 0.4])
    weights = [model.get_parameter(f"layers.{number}.weight").detach() for number in range(4)]
    expected = [float(weight.double().std(correction=0)) for weight in weights]
    assert depth.now == pytest.approx(expected, rel=1e-6)
    # Two layers are too few. Layers of several shapes are listed together, without constant normalisations.
    assert not counted(built(lambda: Stack(layers=2))).depths
    shapes = {one.pattern: one for one in counted(built(TORCH["ResNet"])).depths}
    assert shapes["layers.*.downsample.*.weight"].layers == (0, 1, 2)


def test_the_kinds_with_the_most_elements_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_data, "MOST_PANELS", 3)
    monkeypatch.setattr(plot_data, "MOST_DEPTHS", 2)
    module = nn.Module()
    for kind, size in (("a", 7), ("b", 50), ("c", 9), ("d", 40), ("e", 30)):
        layers = (nn.Linear(size, size, bias=False) for _ in range(3))
        module.register_module(kind, nn.ModuleList(layers))
    found = counted(module)
    assert [panel.pattern for panel in found.panels] == ["b.*.weight", "d.*.weight", "e.*.weight"]
    assert [depth.pattern for depth in found.depths] == ["b.*.weight", "d.*.weight"]
    # Only kinds that have a panel count.
    assert (found.more_panels, found.more_depths) == (2, 1)


def test_complex_and_meta_parameters_are_counted_as_unread() -> None:
    module = Holder(5, 5, weight=nn.init.normal_)
    module.turning = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    module.away = nn.Parameter(torch.empty(3, device="meta"))
    assert counted(module).unread == 2
    with pytest.raises(ValueError, match=r"^paraminit_ext\.plot: .*materialize_module"):
        counted(deferred_init(Stack))
    with pytest.raises(ValueError, match=ONE_LINE):
        counted(nn.ReLU())


# ----------------------------------------------------------------------------------------
# Memory, files, meshes
# ----------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.arange(3000.0).view(60, 50),
    "transposed": lambda: torch.arange(3000.0).view(60, 50).t(),
    "channels last": lambda: (
        torch.arange(3000.0).view(3, 10, 10, 10).contiguous(memory_format=torch.channels_last)
    ),
    "every second": lambda: torch.arange(6000.0)[::2],
    "expanded": lambda: torch.arange(3.0)[:, None].expand(3, 1000),
    "scalar": lambda: torch.tensor(1.0),
    "empty": lambda: torch.empty(0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_all_elements_and_small(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_data, "PIECE", 128)
    tensor = LAYOUTS[layout]()
    parts = list(plot_data.pieces(tensor))
    assert all(part.dim() == 1 and part.numel() <= 128 for part in parts)
    joined = torch.cat(parts) if parts else torch.empty(0)
    assert torch.equal(joined.sort().values, tensor.flatten().sort().values)


def checkpoint(module: nn.Module, folder: Path) -> Path:
    """Save the state of the module in two files."""
    tensors = {
        name: tensor.contiguous() for name, tensor in module.state_dict().items() if name != "head.weight"
    }
    names = sorted(tensors)
    folder.mkdir()
    for number, part in enumerate((names[::2], names[1::2])):
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / f"{number}.safetensors")
    return folder


def test_a_checkpoint_gives_the_panels_of_its_module_from_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(Stack)
    path = checkpoint(module, tmp_path / "state")
    plan = InitPlan.of(module)
    expected = counted(module)
    seen: list[int] = []
    count = plot_data._counted

    def noted(part: Tensor, *arguments: Any) -> Tensor:
        seen.append(part.numel())
        return count(part, *arguments)

    monkeypatch.setattr(plot_data, "PIECE", 100)
    monkeypatch.setattr(plot_data, "_counted", noted)
    found = panels_of(State(path), None, plan)
    # A plan tells which tensors are buffers. A file does not, so without a plan buffers have panels too.
    assert set(by_kind(found)) == set(by_kind(expected))
    for kind, panel in by_kind(found).items():
        other = by_kind(expected)[kind]
        assert sorted(panel.names) == sorted(other.names)
        assert panel.now.counts == other.now.counts
        assert panel.bins == other.bins
        assert panel.laws == pytest.approx(other.laws)
    assert sorted(found.constants) == sorted(expected.constants)
    assert [one.layers for one in found.depths] == [one.layers for one in expected.depths]
    assert max(seen) <= 100
    assert sum(seen) == 4 * 32 * 32 + 50 * 32
    assert ("table", (9,)) in by_kind(counted(path))


def test_the_state_before_is_counted_beside_the_state_now(tmp_path: Path) -> None:
    before = built(Stack)
    now = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in now.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        now.get_parameter("norms.0.bias").fill_(2.0)
    for state in (before, checkpoint(before, tmp_path / "before")):
        found = by_kind(counted(now, state))
        assert set(found) > set(by_kind(counted(before)))
        own = by_kind(counted(before))
        for kind, panel in found.items():
            assert panel.before is not None
            numel = math.prod(panel.shape) * len(panel.names)
            for histogram in (panel.now, panel.before):
                counts = sum(histogram.counts) + (histogram.zeros or 0)
                assert counts == histogram.statistics.finite == numel
            if kind in own:
                assert panel.before.stds == pytest.approx(own[kind].now.stds)
    # A constant that has become another constant is listed with both values.
    now = copy.deepcopy(before)
    with torch.no_grad():
        for norm in ("norms.1.weight", "norms.2.weight"):
            now.get_parameter(norm).fill_(5.0)
    changed = [one for one in counted(now, before).constants if one.value != one.before]
    assert [tuple(one) for one in changed] == [("norms.*.weight", 5.0, 1.0, 2)]


def test_another_state_has_to_have_the_same_parameters() -> None:
    more, other = Stack(layers=5), Stack(width=16)
    for now, before, name in (
        (Stack(), more, "layers.4.weight"),
        (more, Stack(), "layers.4.weight"),
        (Stack(), other, "layers.0.weight"),
        (Stack(), deferred_init(Stack), "layers.0.weight"),
    ):
        with pytest.raises(ValueError, match=ONE_LINE) as raised:
            counted(now, before)
        assert name in str(raised.value)


def test_a_state_before_may_be_tied_otherwise() -> None:
    tied, untied = Stack(), Stack()
    untied.head.weight = nn.Parameter(torch.randn(50, 32))
    (head,) = [panel for panel in counted(untied, tied).panels if panel.pattern == "head.weight"]
    assert head.before is not None
    assert head.before.stds == pytest.approx([float(tied.head.weight.detach().std(correction=0))], rel=1e-5)
    assert "head.weight" not in {panel.pattern for panel in counted(tied, tied).panels}
    # In the other direction the head before has no counterpart.
    assert "head.weight" not in {panel.pattern for panel in counted(tied, untied).panels}


@pytest.mark.usefixtures("alone")
def test_a_dtensor_is_drawn_as_the_whole(tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1, 1))
    module = Holder(40, 30, weight=nn.init.normal_)
    whole = module.get_parameter("weight").detach()
    expected = counted(module).panels
    module.weight = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)]))
    assert counted(module).panels == expected
    assert plot(module, tmp_path / "whole.png").stat().st_size


_TWO_RANKS = """
import os, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from paraminit_ext.models.plot_data import State, panels_of
from paraminit_ext.models.plot import plot

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
module, plain = nn.Module(), nn.Module()
for name, placement in (("rows", Shard(0)), ("columns", Shard(1)), ("both", Replicate())):
    whole = torch.randn(41, 30)
    plain.register_parameter(name, nn.Parameter(whole))
    module.register_parameter(name, nn.Parameter(distribute_tensor(whole, mesh, [placement])))
found, expected = panels_of(State(module)).panels, panels_of(State(plain)).panels
print([one.now.counts for one in found] == [one.now.counts for one in expected])
# Each rank names its own file, which shows who writes.
out = folder / f"{rank}.png"
print(plot(module, out) == out, out.exists())
dist.barrier()
# gloo's threads sometimes abort a process that exits normally, so exit at once.
sys.stdout.flush()
os._exit(0)
"""


def test_ranks_count_together_and_the_first_one_writes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        ranks = executor.map(lambda rank: subprocesses.lines(_TWO_RANKS, str(tmp_path), str(rank)), range(2))
    assert list(ranks) == [["True", "True True"], ["True", "True False"]]


# ----------------------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_values_give_the_same_bytes_under_any_settings(suffix: str, tmp_path: Path) -> None:
    module = built(Stack)
    first = plot(module, tmp_path / f"first.{suffix}").read_bytes()
    before = dict(mpl.rcParams.copy())
    with mpl.rc_context(
        {"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": "other", "savefig.dpi": 20}
    ):
        settings = dict(mpl.rcParams.copy())
        second = plot(module, tmp_path / f"second.{suffix}").read_bytes()
        assert dict(mpl.rcParams.copy()) == settings
    assert first == second
    assert dict(mpl.rcParams.copy()) == before
    assert mpl.__version__.encode() not in first
    # No other file is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"first.{suffix}", f"second.{suffix}"]


def test_no_backend_is_chosen_and_pyplot_is_not_imported(tmp_path: Path) -> None:
    code = """
import sys, torch, matplotlib
from paraminit_ext.models.plot import plot
plot(torch.nn.Linear(9, 9), sys.argv[1])
print("matplotlib.pyplot" in sys.modules, matplotlib.get_backend(auto_select=False))
"""
    assert subprocesses.lines(code, str(tmp_path / "a.png"), MPLBACKEND="") == ["False None"]


def faults(found: Panels) -> list[str]:
    """Return the texts of the figure that overlap, reach out of it, or are too small."""
    from matplotlib import style
    from matplotlib.text import Text

    boxes: list[tuple[str, Any]] = []
    wrong: list[str] = []
    draw = Text.draw

    def noted(text: Text, renderer: Any) -> None:
        if text.get_text() and text.get_visible():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))
        if float(text.get_fontsize()) < 7:
            wrong.append(text.get_text())
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch, style.context("default"):
        patch.setattr(Text, "draw", noted)
        figure = plot_figure.draw(found)
        figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for place, (one, box) in enumerate(boxes):
        if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height:
            wrong.append(one)
        wrong += [f"{one} / {two}" for two, other in boxes[:place] if box.overlaps(other)]
    return wrong


def odd() -> nn.Module:
    module = Holder(
        300,
        100,
        far=nn.init.normal_,
        large=lambda t: nn.init.normal_(t, 0.0, 1e6),
        # In the last column, in which a long label would reach out of the figure.
        narrow=lambda t: nn.init.normal_(t, -1.0, 1e-6),
        sparse=LAWS["sparse"],
        nans=lambda t: nn.init.constant_(t, math.nan),
        **{f"a_name_that_is_{'very_' * 20}long_$x$_y$": nn.init.normal_},
    )
    with torch.no_grad():
        module.get_parameter("far")[0, 0] = 1e4
        module.get_parameter("large")[0, :7] = math.inf
    return module


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": TORCH["ResNet"],
    "GPT-2": TRANSFORMERS["GPT-2"],
    "Whisper": TRANSFORMERS["Whisper"],
    "stack": lambda: Stack(layers=12),
    "one layer": lambda: nn.Linear(64, 64),
    "odd": odd,
}


@pytest.mark.parametrize("name", MODELS)
def test_texts_do_not_overlap_and_are_inside_and_large_enough(name: str) -> None:
    if name in TRANSFORMERS:
        pytest.importorskip("transformers", reason="needs transformers (make build)")
    module = built(MODELS[name]) if name != "odd" else odd()
    assert faults(counted(module)) == []
    before = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3).add_(0.01 * torch.randn_like(parameter))
    assert faults(counted(module, before)) == []


def test_a_long_name_loses_its_middle() -> None:
    page = plot_figure._Page()
    assert page.shortened("short", 1.0) == "short"
    name = "model.encoder.layers.*.self_attention.query.weight"
    shown = page.shortened(name, 1.0)
    head, tail = shown.split("\u2026")
    assert page.length(shown) <= 1.0
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(tail) > len(head) > 0


def test_panels_are_as_wide_as_their_names_need() -> None:
    from matplotlib.text import Text

    pytest.importorskip("transformers", reason="needs transformers (make build)")
    found = counted(TRANSFORMERS["Whisper"]())
    shown = {text.get_text() for text in plot_figure.draw(found).findobj(Text)}
    assert {plot_figure._times(panel.pattern, len(panel.names)) for panel in found.panels} <= shown


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path) -> None:
    layer, file = nn.Linear(3, 3), tmp_path / "file.png"
    file.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    cases: tuple[tuple[Any, type[Exception]], ...] = (
        ((3, tmp_path / "a.png"), TypeError),
        ((layer, 3), TypeError),
        ((layer, tmp_path / "a.txt"), ValueError),
        ((layer, tmp_path / "a"), ValueError),
        ((layer, tmp_path / "none" / "a.png"), FileNotFoundError),
        ((layer, file / "a.png"), NotADirectoryError),
        ((layer, tmp_path / "folder.png"), IsADirectoryError),
        ((nn.ReLU(), tmp_path / "a.png"), ValueError),
    )
    for arguments, kind in cases:
        with pytest.raises(kind, match=ONE_LINE):
            plot(*arguments)
    wrong: Any = 3
    for named in ({"plan": wrong}, {"before": wrong}):
        with pytest.raises(TypeError, match=ONE_LINE):
            plot(layer, tmp_path / "a.png", **named)
    # Nothing was written, under any name.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.png", "folder.png"]


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"got none\. Run `pip install matplotlib`\.$"):
        plot(nn.Linear(3, 3), tmp_path / "a.png")


def test_a_path_and_a_state_before_are_drawn(tmp_path: Path) -> None:
    before = built(Stack)
    path = checkpoint(before, tmp_path / "state")
    with_before = plot(before, tmp_path / "pair.png", before=path, plan=InitPlan.of(before))
    alone = plot(path, tmp_path / "alone.png")
    assert with_before.read_bytes() != alone.read_bytes()
