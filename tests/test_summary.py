"""``summary()`` of modules, checkpoints and sharded tensors agrees with torch's own numbers.

Standard deviations are computed in float64 from float32 sums. The relative error of the sums is at most 6e-7
(tests/test_statistics_op.py).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from paraminit_ext import deferred_init, summary
from paraminit_ext.models.summary import READABLE_DTYPES, Statistics
from zoo import TORCH

# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")


class Tied(nn.Module):
    """Tied weights, a persistent integer buffer, a non-persistent buffer, and a parameter on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("kept", torch.arange(5))
        self.register_buffer("lost", torch.full((2, 2), math.nan), persistent=False)
        self.away = nn.Parameter(torch.empty(2, 3, device="meta"))


def rendered(table: object, width: int) -> list[str]:
    rich = pytest.importorskip("rich.console", reason="needs rich (make build)")
    out = StringIO()
    rich.Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("name", TORCH)
def test_numbers_are_torchs(name: str) -> None:
    module = TORCH[name]()
    found = summary(module)
    expected = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert expected
    assert {row.name for row in found} == expected.keys()
    for row in found:
        tensor = expected[row.name].detach()
        exact = tensor.double()
        assert (row.shape, row.numel) == (tuple(tensor.shape), tensor.numel())
        assert row.dtype == str(tensor.dtype).removeprefix("torch.")
        assert row.requires_grad is expected[row.name].requires_grad
        assert (row.min, row.max) == (float(exact.min()), float(exact.max()))
        assert row.zeros == float((exact == 0).double().mean())
        assert row.mean == pytest.approx(float(exact.mean()), rel=1e-6, abs=1e-9)
        assert row.std == pytest.approx(float(exact.std(correction=0)), rel=1e-6, abs=1e-12)
        assert (row.nans, row.infs) == (0, 0)


def test_ties_buffers_gradients_and_meta_are_reported() -> None:
    module = Tied()
    module.embedding(torch.tensor([1])).sum().backward()
    found = summary(module)
    assert found["head.weight"].tie == "embedding.weight"
    assert found["embedding.weight"].has_grad
    assert not found["frozen"].requires_grad
    assert found["kept"].kind == "buffer"
    assert found["kept"].max == 4
    assert found["lost"].kind == "non-persistent buffer"
    assert found["lost"].nans == 4
    assert found["lost"].mean is None
    assert found["away"].device == "meta"
    assert found["away"].mean is None
    # The tied weight counts once.
    assert found.parameters == 7 * 4 + 3 + 2 * 3
    again = json.loads(json.dumps(found.to_dict()))
    assert again["parameters"] == found.parameters
    assert [row["name"] for row in again["tensors"]] == [row.name for row in found]


class Plain(nn.Parameter):
    """A subclass that overrides nothing."""


def test_a_parameter_subclass_that_overrides_nothing_is_read() -> None:
    module = nn.Module()
    module.w = Plain(torch.tensor([1.0, 3.0]))
    assert summary(module)["w"].mean == 2


def test_a_lazy_module_has_a_summary_without_numbers() -> None:
    row = summary(nn.LazyLinear(4))["weight"]
    assert (row.shape, row.numel, row.mean) == ((), 0, None)


UNREADABLE: dict[str, Callable[[], Tensor]] = {
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    "float4": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "bits": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: torch.eye(2).to_sparse(),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_buffer_that_cannot_be_read_leaves_the_others_readable(name: str) -> None:
    module = nn.Linear(1, 2)
    module.register_buffer("other", UNREADABLE[name]())
    found = summary(module)
    assert found["other"].mean is None
    assert found["other"].numel == 4
    assert found["weight"].mean == pytest.approx(float(module.weight.mean()))
    assert json.loads(json.dumps(found.to_dict()))["tensors"][-1]["mean"] is None
    assert len(str(found).split("\n")) == 5


def test_the_readable_dtypes_are_those_that_the_operator_reads() -> None:
    read = set()
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        # The operator refuses the others by this error.
        with contextlib.suppress(NotImplementedError):
            torch.ops.paraminit_ext.statistics(torch.empty(2, dtype=dtype))
            read.add(dtype)
    assert read == READABLE_DTYPES


def test_complex_means_are_complex_and_json_has_them() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([1 + 2j, 3 - 4j]))
    row = summary(module)["weight"]
    assert row.mean == 2 - 1j
    assert json.loads(json.dumps(row.to_dict()))["mean"] == [2.0, -1.0]


def test_repeated_layers_are_one_row() -> None:
    layers = nn.Module()
    layers.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(32))
    lines = str(summary(layers)).split("\n")
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        "layers.*.weight x 32",
        "layers.*.bias x 32",
    ]
    # If one layer's deviation differs, the row shows a range.
    with torch.no_grad():
        layers.get_parameter("layers.7.weight").mul_(3)
    assert " to " in str(summary(layers)).split("\n")[1]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_fits_the_terminal(width: int) -> None:
    transformer = TORCH["Transformer"]()
    lines = rendered(summary(transformer), width)
    assert all(len(line) <= width for line in lines)
    if width >= 80:
        # No name is wrapped or cut.
        assert any("encoder.layers.*.self_attn.in_proj_weight x 2" in line for line in lines)
        assert "…" not in "".join(lines)


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    values = torch.randn(1000, dtype=torch.float64)
    values[3] = math.nan
    whole, parts = Statistics(*torch.ops.paraminit_ext.statistics(values).tolist()), Statistics()
    for part in values.split(37):
        parts = parts.merged(Statistics(*torch.ops.paraminit_ext.statistics(part).tolist()))
    assert parts[:5] == whole[:5]
    assert parts[8:] == whole[8:]
    assert parts[5:8] == pytest.approx(whole[5:8], rel=1e-12, abs=1e-12)
    assert Statistics().merged(whole) == whole
    assert whole.merged(Statistics()) == whole


# ----------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> dict[str, Tensor]:
    tensors = {
        "a.weight": torch.randn(300, 70),
        "b.weight": torch.randn(40, 50).bfloat16(),
        "c": torch.randn(100).to(torch.float8_e4m3fn),
        "d": torch.arange(9),
        "e": torch.zeros(0, 3),
        "f": torch.tensor(2.5),
    }
    first = {name: tensors[name] for name in ("a.weight", "c")}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    safetensors.torch.save_file(first, folder / "model-00001-of-00002.safetensors")
    safetensors.torch.save_file(second, folder / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def test_the_summary_of_a_checkpoint_is_that_of_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = checkpoint(tmp_path)
    # Read in pieces of about 1000 bytes, which hold whole elements.
    monkeypatch.setattr("paraminit_ext.models.checkpoint_reader.StoredTensor.parts.__defaults__", (1000,))
    holder = nn.Module()
    for name, tensor in tensors.items():
        holder.register_buffer(name.replace(".", "_"), tensor)
    direct = summary(holder)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = summary(path)
        assert {row.name for row in found} == tensors.keys()
        for name in tensors:
            row, other = found[name], direct[name.replace(".", "_")]
            assert (row.shape, row.dtype, row.min, row.max) == (
                other.shape,
                other.dtype,
                other.min,
                other.max,
            )
            assert (row.zeros, row.nans, row.numel) == (other.zeros, other.nans, other.numel)
            if row.mean is not None:
                assert other.mean is not None
                assert other.std is not None
                assert row.mean == pytest.approx(other.mean, rel=1e-6, abs=1e-9)
                assert row.std == pytest.approx(other.std, rel=1e-6)
    single = summary(tmp_path / "model-00001-of-00002.safetensors")
    assert [row.name for row in single if row.device == "model-00001-of-00002.safetensors"]
    assert len(single) == 2


def damaged(folder: Path, how: str) -> Path:
    checkpoint(folder)
    file = folder / "model-00001-of-00002.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if how == "cut":
        file.write_bytes(content[:-10])
    elif how == "header cut":
        file.write_bytes(content[:20])
    elif how == "no header":
        file.write_bytes(b"not a checkpoint" * 10)
    elif how == "wrong size":
        file.write_bytes(
            content[:8] + content[8 : 8 + length].replace(b"300", b"301") + content[8 + length :]
        )
    elif how == "path in index":
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    elif how == "twice":
        (folder / "model.safetensors.index.json").unlink()
        (folder / "other.safetensors").write_bytes(content)
    elif how == "empty":
        for path in folder.iterdir():
            path.unlink()
    return folder


@pytest.mark.parametrize(
    "how", ["cut", "header cut", "no header", "wrong size", "path in index", "twice", "empty"]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(how: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^paraminit_ext: expected [^\n]*, got [^\n]*\. [^\n]*$"):
        summary(damaged(tmp_path, how))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^paraminit_ext\.summary: expected"):
        summary(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        summary("/nowhere/model.safetensors")


# ----------------------------------------------------------------------------------------
# Meshes
# ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alone")
def test_the_summary_of_a_dtensor_is_that_of_the_whole(tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    whole = torch.randn(10, 6)
    module = nn.Module()
    module.weight = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)]))
    assert isinstance(module.weight, DTensor)
    row = summary(module)["weight"]
    plain = nn.Module()
    plain.weight = nn.Parameter(whole)
    assert row == summary(plain)["weight"]


def test_nothing_is_read_of_a_deferred_module() -> None:
    found = summary(deferred_init(TORCH["Transformer"]))
    assert all(row.mean is None and row.device == "meta" for row in found)
    assert found.parameters > 0
