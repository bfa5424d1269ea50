"""``audit()`` finds a planted fault of every kind, and raises no false alarm in real models.

Each fault is planted in a model that has no findings without the fault, and each test checks both.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

from module_equality import patched, seeded
from paraminit_ext import InitPlan, Key, audit, deferred_init, init, keyed, materialize_module, patch
from paraminit_ext.models.finding import KINDS
from paraminit_ext.models.replicas import fingerprint
from test_models import every_model
from zoo import TORCH, Build

KEY = Key(2027)
# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    """Two layers, a norm, and a buffer that checkpoints omit."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)
        self.norm = nn.LayerNorm(64)
        self.register_buffer("frequencies", 1e4 ** -(torch.arange(0, 8) / 8), persistent=False)


def findings_in(
    module: nn.Module | Path, plan: InitPlan | None = None, key: Key | None = None
) -> list[tuple[str, str]]:
    return [(finding.kind, finding.names[0]) for finding in audit(module, plan, key)]


def set_values(tensor: Tensor, change: Callable[[Tensor], object]) -> None:
    """Change a tensor through ``.data``, which bypasses its version counter."""
    change(tensor.data)


# ----------------------------------------------------------------------------------------
# Real models
# ----------------------------------------------------------------------------------------

# transformers fills a convolution's weight that weight_norm computes, so the fill has no effect
# (modeling_wav2vec2.py, Wav2Vec2PositionalConvEmbedding). The finding is correct.
TRUE_FINDINGS = [("missed", "wav2vec2.encoder.pos_conv_embed.conv.weight")]


def without_true_findings(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [finding for finding in findings if finding not in TRUE_FINDINGS]


@every_model
def test_no_false_alarm_in_a_model_that_stock_built(build: Build) -> None:
    assert findings_in(seeded(build)) == []


@every_model
def test_no_false_alarm_in_a_model_built_under_patch(build: Build) -> None:
    assert without_true_findings(findings_in(patched(build))) == []
    with patch(key=KEY):
        model = build()
    assert without_true_findings(findings_in(model)) == []


@every_model
def test_no_false_alarm_in_a_model_of_a_plan_and_each_bit_is_proven(build: Build) -> None:
    model = deferred_init(build, key=KEY)
    plan = InitPlan.of(model)
    assert findings_in(materialize_module(model)) == []
    assert findings_in(model, plan) == []
    assert findings_in(plan.apply(seeded(build)), plan) == []
    half = materialize_module(deferred_init(build, key=KEY), dtype=torch.bfloat16)
    assert findings_in(half, plan) == []
    other = Key(1)
    assert findings_in(plan.apply(seeded(build), key=other), plan, other) == []
    assert {kind for kind, _ in findings_in(model, plan, other)} == {"differs"}


# ----------------------------------------------------------------------------------------
# One tensor
# ----------------------------------------------------------------------------------------


def test_a_tensor_on_meta_is_found() -> None:
    with torch.device("meta"):
        model = Model()
    kinds = {kind for kind, _ in findings_in(model)}
    assert kinds == {"meta"}
    report = audit(model, InitPlan.of(deferred_init(Model, key=KEY)))
    assert len(report) == 7
    # The findings say that there are no values, so the last line does not repeat it.
    assert str(report).split("\n")[-1] == "7 findings in 7 tensors"
    assert not report.is_proven


class Forgets(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(64))
        self.shift = nn.Parameter(torch.empty(64))
        nn.init.zeros_(self.shift)
        self.table = nn.Parameter(torch.empty(4, 4))
        self.table.data.copy_(torch.eye(4))
        self.extra = nn.Parameter(torch.ones(3))


def test_a_parameter_that_is_never_written_under_patch_is_found() -> None:
    with patch(key=KEY):
        model = Forgets()
    assert findings_in(model) == [("unwritten", "scale")]
    with torch.no_grad():
        model.scale.fill_(1)
    assert findings_in(model) == []


def test_what_is_loaded_after_patch_through_data_is_written() -> None:
    with patch(key=KEY):
        model = Forgets()
    model.scale.data.copy_(torch.linspace(0, 1, 64))
    assert findings_in(model) == []


def test_a_parameter_that_is_never_written_under_keyed_is_found() -> None:
    with torch.device("meta"):
        model = Forgets()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            # Stands for uninitialised memory that holds the values of another model.
            parameter.data.copy_(torch.linspace(0, 1, parameter.numel()).view(parameter.shape))
    with keyed(model, KEY):
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
    kinds = {name: kind for kind, name in findings_in(model)}
    assert {"scale", "shift", "table", "extra"} <= kinds.keys()
    assert {kinds[name] for name in ("scale", "shift", "table", "extra")} == {"unwritten"}
    assert "up.weight" not in kinds


def test_to_empty_under_keyed_is_an_allocation() -> None:
    with torch.device("meta"):
        model = Model()
    with keyed(model, KEY):
        model.to_empty(device="cpu")
        model.up.reset_parameters()
    names = {name for kind, name in findings_in(model) if kind == "unwritten"}
    assert names == {"down.weight", "down.bias", "norm.weight", "norm.bias", "frequencies"}


def test_no_alarm_about_what_keyed_leaves_as_it_was() -> None:
    model = seeded(lambda: TORCH["Transformer"]())
    with keyed(model, KEY):
        nn.init.xavier_uniform_(model.get_parameter("encoder.layers.0.linear1.weight"))
    assert findings_in(model) == []


def test_what_a_plan_leaves_as_it_was_allocated_is_found() -> None:
    model = materialize_module(deferred_init(Forgets, key=KEY))
    assert findings_in(model) == [("unwritten", "scale")]


def test_a_buffer_that_to_empty_left_is_found() -> None:
    model = Model()
    model.frequencies = torch.zeros(8)
    assert findings_in(model) == [("unwritten", "frequencies")]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf"), (1e30, "junk"), (1e-40, "junk")],
)
@pytest.mark.parametrize("how", ["stock", "patch", "plan", "file"])
def test_junk_is_found(value: float, kind: str, how: str, tmp_path: Path) -> None:
    if how == "plan":
        model = materialize_module(deferred_init(Model, key=KEY))
    else:
        model = patched(Model) if how == "patch" else seeded(Model)
    assert findings_in(model) == []
    set_values(model.down.weight[3], lambda row: row.fill_(value))
    target: nn.Module | Path = model
    if how == "file":
        safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        target = tmp_path
    in_weight = [finding for finding in findings_in(target) if finding[1] == "down.weight"]
    assert (kind, "down.weight") in in_weight


def test_masks_are_no_junk_but_lost_buffers_are() -> None:
    model = Model()
    model.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
    model.register_buffer("places", torch.arange(5), persistent=False)
    model.register_buffer("closed", torch.full((4,), torch.finfo(torch.float32).min))
    assert findings_in(model) == []
    model.get_buffer("places").fill_(94_284_607_473_760)
    set_values(model.frequencies[2], lambda element: element.fill_(math.nan))
    assert findings_in(model) == [("nan", "frequencies"), ("junk", "places")]


@pytest.mark.parametrize(
    ("dtype", "value", "is_junk"),
    [
        (torch.float8_e4m3fn, 448.0, False),
        (torch.float8_e5m2, 57344.0, False),
        (torch.float16, 32000.0, False),
        (torch.float16, 40000.0, True),
        (torch.float32, 40000.0, False),
        (torch.float32, 2e6, True),
    ],
)
def test_the_largest_number_of_a_quantised_weight_is_no_junk(
    dtype: torch.dtype, value: float, is_junk: bool, tmp_path: Path
) -> None:
    weight = torch.linspace(-value, value, 64).to(dtype)
    safetensors.torch.save_file({"weight": weight}, tmp_path / "model.safetensors")
    assert findings_in(tmp_path) == ([("junk", "weight")] if is_junk else [])


def test_masks_in_a_checkpoint_are_no_finding_but_infinite_parameters_are(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
            self.register_buffer("closed", torch.full((4,), torch.finfo(torch.float32).min))
            self.shift = nn.Parameter(torch.zeros(4))

    model = materialize_module(deferred_init(Masked, key=KEY))
    plan = InitPlan.of(model)
    assert findings_in(model, plan) == []
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    # Without a plan, nothing tells a parameter from a buffer.
    assert findings_in(path) == [("junk", "closed")]
    assert findings_in(path, plan) == []
    model.get_parameter("shift").data[0] = -math.inf
    safetensors.torch.save_file(model.state_dict(), path)
    assert findings_in(path, plan) == [("inf", "shift"), ("differs", "shift")]
    model.get_parameter("shift").data[1] = 1.0
    safetensors.torch.save_file(model.state_dict(), path)
    assert findings_in(path) == [("inf", "shift"), ("junk", "closed")]


def test_a_buffer_without_elements_is_not_unwritten() -> None:
    def build() -> nn.Module:
        module = nn.Linear(3, 3)
        module.register_buffer("listed", torch.tensor([]))
        module.register_buffer("allocated", torch.empty(0, 3))
        module.register_buffer("lost", torch.empty(3))
        return module

    model = materialize_module(deferred_init(build, key=KEY))
    assert findings_in(model) == [("unwritten", "lost")]
    assert findings_in(model, InitPlan.of(model)) == [("unwritten", "lost")]
    assert findings_in(patched(build)) == [("unwritten", "lost")]


@pytest.mark.parametrize("how", ["patch", "plan"])
def test_a_constant_in_place_of_random_numbers_is_found(how: str) -> None:
    model = patched(Model) if how == "patch" else materialize_module(deferred_init(Model, key=KEY))
    set_values(model.up.weight, lambda weight: weight.fill_(0.5))
    assert findings_in(model) == [("constant", "up.weight")]


@pytest.mark.parametrize("how", ["patch", "keyed", "plan", "given plan"])
@pytest.mark.parametrize(("factor", "is_found"), [(1.3, True), (0.7, True), (1.1, False)])
def test_a_deviation_that_is_off_is_found(factor: float, is_found: bool, how: str) -> None:
    if how == "keyed":
        model = seeded(Model)
        with keyed(model, KEY):
            model.down.reset_parameters()
    else:
        model = patched(Model) if how == "patch" else materialize_module(deferred_init(Model, key=KEY))
    plan = InitPlan.of(model) if how == "given plan" else None
    assert findings_in(model, plan) == []
    # After the clamp to 0.08, the weight times 1.1 is still within the bounds of its uniform law.
    set_values(model.down.weight, lambda weight: weight.clamp_(-0.08, 0.08).mul_(factor))
    laws = [name for kind, name in findings_in(model, plan) if kind == "law"]
    assert laws == (["down.weight"] if is_found else [])


def test_values_beyond_the_bounds_and_another_mean_are_found() -> None:
    model = patched(Model)
    set_values(model.up.weight, lambda weight: weight[0, :1].fill_(0.2))
    set_values(model.down.weight, lambda weight: weight.add_(0.03))
    assert findings_in(model) == [("law", "up.weight"), ("law", "down.weight")]


def test_chance_is_no_finding() -> None:
    with patch(key=KEY):
        model = nn.ModuleList(nn.Linear(2, 2) for _ in range(300))
    assert findings_in(model) == []


# ----------------------------------------------------------------------------------------
# Fills of copies
# ----------------------------------------------------------------------------------------


class FillsACopy(Model):
    how = "float"

    def __init__(self) -> None:
        super().__init__()
        weight = self.up.weight
        if self.how == "float":
            self.up.bfloat16()
            weight = self.up.weight
            nn.init.normal_(weight.float(), std=0.02)
        elif self.how == "clone":
            nn.init.normal_(weight.clone(), std=0.02)
        elif self.how == "no_grad":
            with torch.no_grad():
                nn.init.normal_(weight.detach().clone(), std=0.02)
        elif self.how == "computed":
            nn.init.normal_(weight * 2, std=0.02)
        elif self.how == "copied back":
            with torch.no_grad():
                weight.copy_(nn.init.normal_(weight.clone(), std=0.02))
        elif self.how == "data":
            weight.data = nn.init.normal_(weight.data.double(), std=0.02).float()
        elif self.how == "filled after":
            nn.init.normal_(weight.clone(), std=0.02)
            nn.init.normal_(weight, std=0.02)

        elif self.how == "new parameter":
            self.extra = nn.Parameter(weight.detach().clone())
            nn.init.xavier_normal_(self.extra)


REACHING = ["copied back", "data", "filled after", "new parameter"]


@pytest.mark.parametrize("how", ["float", "clone", "no_grad", "computed", *REACHING])
def test_a_fill_of_a_copy_is_found_unless_it_reaches_the_parameter(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FillsACopy, "how", how)
    model = patched(FillsACopy)
    assert findings_in(model) == ([] if how in REACHING else [("missed", "up.weight")])
    for finding in audit(model):
        assert "test_audit.py" in finding.reason


@pytest.mark.parametrize("grad", [True, False])
def test_a_fill_of_a_parametrised_weight_is_found(grad: bool) -> None:
    def build() -> nn.Module:
        layer: nn.Module = parametrizations.weight_norm(nn.Linear(48, 80))
        with torch.set_grad_enabled(grad):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        return layer

    findings = list(audit(patched(build)))
    assert [finding.kind for finding in findings] == ["missed"]
    assert all("weight" in name for name in findings[0].names)
    # Another layer of that shape, without such a fill, has no finding.
    with patch(key=KEY):
        assert findings_in(parametrizations.weight_norm(nn.Linear(48, 80))) == []


def test_a_fill_of_a_copy_under_keyed_is_found() -> None:
    model = seeded(Model)
    with keyed(model, KEY):
        init.normal_(model.up.weight.float().clone(), std=0.02)
    assert findings_in(model) == [("missed", "up.weight")]


# ----------------------------------------------------------------------------------------
# Several tensors
# ----------------------------------------------------------------------------------------


def test_equal_matrices_that_are_not_tied_are_found(tmp_path: Path) -> None:
    model = nn.ModuleList(nn.Linear(40, 40) for _ in range(3))
    assert findings_in(model) == []
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)  # type: ignore[arg-type, operator]
    (finding,) = audit(model)
    assert (finding.kind, finding.names) == ("equal", ("0.weight", "2.weight"))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert findings_in(tmp_path) == [("equal", "0.weight")]
    model[2].weight = model[0].weight
    assert findings_in(model) == []


def test_copied_layers_of_a_transformer_are_found() -> None:
    layer = nn.TransformerEncoderLayer(16, 2)
    encoder = nn.TransformerEncoder(layer, 3)
    assert {kind for kind, _ in findings_in(encoder)} == {"equal"}


class Ties(nn.Module):
    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=first)
        nn.init.normal_(self.head.weight, std=second)


def test_a_tied_tensor_that_is_filled_twice_by_different_laws_is_found() -> None:
    with patch(key=KEY):
        assert findings_in(Ties(0.02, 0.02)) == []
        (finding,) = audit(Ties(0.02, 0.005))
    assert (finding.kind, finding.names) == ("tied twice", ("embedding.weight", "head.weight"))
    model = seeded(lambda: Ties(0.02, 0.02))
    with keyed(model, KEY):
        nn.init.normal_(model.embedding.weight, std=0.02)
        nn.init.xavier_uniform_(model.head.weight)
    assert findings_in(model) == [("tied twice", "embedding.weight")]


def test_a_parameter_of_no_elements_is_found() -> None:
    model = seeded(Model)
    model.up.weight.data = torch.empty(0)
    model.up.weight.ds_id = 3  # type: ignore[attr-defined]
    model.down.weight.data.untyped_storage().resize_(0)
    findings = list(audit(model))
    assert [(finding.kind, finding.names[0]) for finding in findings] == [
        ("partitioned", "up.weight"),
        ("partitioned", "down.weight"),
    ]
    assert "GatheredParameters" in findings[0].remedy


# ----------------------------------------------------------------------------------------
# Meshes
# ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alone")
def test_a_fill_that_uses_the_fan_of_a_shard_is_found() -> None:
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (1,))
    model = nn.Module()
    whole = nn.Parameter(distribute_tensor(torch.empty(64, 256), mesh, [Shard(1)]))
    model.weight = whole
    with patch(key=KEY):
        init.kaiming_normal_(whole)
    assert findings_in(model) == []
    # One rank of a mesh that shards by columns: it holds a quarter of them and knows the global shape.
    shape = torch.Size((64, 256))
    local = torch.empty(64, 64)
    model.weight = nn.Parameter(
        DTensor.from_local(local, mesh, [Shard(1)], run_check=False, shape=shape, stride=(256, 1))
    )
    with patch(key=KEY):
        init.kaiming_normal_(local)
    assert findings_in(model) == [("shard", "weight")]


def test_a_scale_that_fits_one_of_several_shards_is_named() -> None:
    model = patched(lambda: nn.ModuleList([nn.Linear(256, 128)]))
    set_values(model.get_parameter("0.weight"), lambda weight: weight.mul_(2))
    (finding,) = audit(model)
    assert "one of 4 shards" in finding.reason


@pytest.mark.parametrize("variance", [64, 3, 4.5])
def test_a_scale_that_fits_no_shards_has_no_hint(variance: float) -> None:
    # 64 ranks are too many to tell from chance, no side is divisible by 3, and 4.5 is no number of ranks.
    model = patched(lambda: nn.ModuleList([nn.Linear(256, 128)]))
    set_values(model.get_parameter("0.weight"), lambda weight: weight.mul_(math.sqrt(variance)))
    (finding,) = audit(model)
    assert finding.kind == "law"
    assert "shards" not in finding.reason


def test_random_numbers_in_place_of_a_constant_are_found() -> None:
    model = patched(Model)
    set_values(model.norm.weight, lambda weight: weight.normal_())
    assert findings_in(model) == [("law", "norm.weight")]


def test_small_tensors_of_a_far_tail_are_no_finding() -> None:
    # Nearly exponential. The standard error of the standard deviation of 100 elements is 14 %, twice as large
    # as for a normal law.
    def build() -> nn.Module:
        tensors = nn.ParameterList(torch.empty(100) for _ in range(2000))
        for tensor in tensors:
            nn.init.trunc_normal_(tensor, a=5.0, b=50.0)
        return tensors

    assert findings_in(patched(build)) == []


def test_a_fingerprint_depends_on_every_bit_and_place() -> None:
    tensor = torch.randn(1000)
    own = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == own
    assert fingerprint(tensor.flip(0)) != own
    swapped = tensor.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert fingerprint(swapped) != own
    for place in (0, 500, 999):
        other = tensor.clone()
        other.view(torch.int32)[place] ^= 1
        assert fingerprint(other) != own
    assert len({fingerprint(torch.zeros(n)) for n in range(1, 50)}) == 49


# ----------------------------------------------------------------------------------------
# Against a plan
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["module", "file"])
@pytest.mark.parametrize("place", [(0, 0), (3, 17), (127, 63)])
def test_the_first_bit_that_differs_is_named(place: tuple[int, int], how: str, tmp_path: Path) -> None:
    model = materialize_module(deferred_init(Model, key=KEY))
    plan = InitPlan.of(model)
    model.up.weight.data.view(torch.int32)[place] ^= 1
    target: nn.Module | Path = model
    if how == "file":
        safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        target = tmp_path
    report = audit(target, plan)
    (finding,) = report
    assert (finding.kind, finding.names) == ("differs", ("up.weight",))
    assert f"first at {list(place)}" in finding.reason
    assert finding.reason.startswith("1 of 8192 elements differ")


def test_names_and_shapes_in_only_one_of_the_two_are_found() -> None:
    plan = InitPlan.of(deferred_init(Model, key=KEY))
    model = plan.apply(seeded(Model))
    model.more = nn.Linear(3, 3)
    model.norm = nn.LayerNorm(65)
    del model.down
    assert set(findings_in(model, plan)) == {
        ("differs", "more.weight"),
        ("differs", "more.bias"),
        ("differs", "norm.weight"),
        ("differs", "norm.bias"),
        ("differs", "down.weight"),
        ("differs", "down.bias"),
    }


# ----------------------------------------------------------------------------------------
# What cannot be read
# ----------------------------------------------------------------------------------------


def opaque() -> Tensor:
    """Return a tensor of a subclass that holds its values elsewhere."""
    return TwoTensor(torch.full((128, 64), math.nan), torch.ones(128, 64))


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.full((128, 64), math.nan)


@pytest.mark.parametrize("made", [opaque, fake])
def test_a_tensor_that_is_not_read_is_named_and_proves_nothing(made: Callable[[], Tensor]) -> None:
    model = materialize_module(deferred_init(Model, key=KEY))
    plan = InitPlan.of(model)
    report = audit(model, plan)
    assert report.is_proven
    assert report.unread == ()
    assert str(report) == "no findings in 7 tensors: bit for bit what the plan says"
    with torch.no_grad():
        model.down.weight[0, 0] += 1
    assert not audit(model, plan).is_proven
    plan.apply(model)
    model.up.weight = nn.Parameter(made())
    for report in (audit(model, plan), audit(model)):
        assert not report.is_proven
        assert report.unread == ("up.weight",)
        assert str(report) == "no findings in 7 tensors; 1 was not read (up.weight)"
        assert report.to_dict() == {"tensors": 7, "unread": ["up.weight"], "proven": False, "findings": []}
    model.down.weight.data[0, 0] = math.nan
    last = str(audit(model, plan)).split("\n")[-1]
    assert last == "2 findings in 7 tensors; 1 was not read (up.weight)"


def test_unread_tensors_of_repeated_layers_are_one_name() -> None:
    model = nn.ModuleList(Model() for _ in range(3))
    for layer in model:
        layer.up.weight = nn.Parameter(opaque())  # type: ignore[union-attr]
    assert str(audit(model)) == "no findings in 21 tensors; 3 were not read (*.up.weight)"


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged, torch.sparse_coo])
def test_a_nested_or_sparse_tensor_is_not_read(layout: torch.layout) -> None:
    model = Model()
    if layout is torch.sparse_coo:
        tensor = torch.eye(3).to_sparse()
    else:
        tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    model.odd = nn.Parameter(tensor)
    assert str(audit(model)) == "no findings in 8 tensors; 1 was not read (odd)"


def test_a_stored_tensor_of_a_dtype_that_torch_lacks_is_not_read(tmp_path: Path) -> None:
    plan = InitPlan.of(deferred_init(lambda: nn.Linear(4, 1, bias=False), key=KEY))
    header = {"weight": {"dtype": "F6_E2M3", "shape": [1, 4], "data_offsets": [0, 3]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    assert str(audit(tmp_path, plan)) == "no findings in 1 tensors; 1 was not read (weight)"


# ----------------------------------------------------------------------------------------
# The report
# ----------------------------------------------------------------------------------------


def broken() -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(Model() for _ in range(4))
    for layer in model.layers:
        set_values(layer.get_parameter("down.weight"), lambda weight: weight.fill_(math.nan))
    set_values(model.get_parameter("layers.1.up.bias"), lambda bias: bias.fill_(1e20))
    return model


def test_the_worst_comes_first_and_json_has_all() -> None:
    report = audit(broken())
    places = [list(KINDS).index(finding.kind) for finding in report]
    assert places == sorted(places)
    record = json.loads(json.dumps(report.to_dict()))
    assert len(record["findings"]) == len(report) == 5
    assert record["findings"][0].keys() == {"kind", "names", "reason", "remedy"}
    assert str(report).split("\n")[-1] == "5 findings in 28 tensors"


@pytest.mark.parametrize("width", [80, 140])
def test_repeated_layers_are_one_finding_and_it_fits(width: int) -> None:
    rich = pytest.importorskip("rich.console", reason="needs rich (make build)")
    out = StringIO()
    rich.Console(file=out, width=width, color_system=None).print(audit(broken()))
    lines = out.getvalue().split("\n")
    assert sum("layers.*.down.weight x 4" in line for line in lines) == 1
    assert all(len(line) <= width for line in lines)


def test_wrong_arguments_are_one_line() -> None:
    wrong: list[tuple[Any, ...]] = [(3,), (Model(), 3), (Model(), None, 3)]
    for arguments in wrong:
        with pytest.raises(TypeError, match=r"^paraminit_ext\.audit: expected [^\n]*$"):
            audit(*arguments)


def test_an_audit_changes_nothing() -> None:
    model = materialize_module(deferred_init(Model, key=KEY))
    before = copy.deepcopy(model.state_dict())
    versions = [parameter._version for parameter in model.parameters()]
    audit(model, InitPlan.of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert versions == [parameter._version for parameter in model.parameters()]
