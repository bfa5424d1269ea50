"""A plan and its file give the same bits in another process, and a wrong file gives a one-line error."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from module_equality import differences, tensors
from paraminit_ext import InitPlan, Key, deferred_init, init, materialize_module
from paraminit_ext.models.plan import Entry
from test_deferred import MODELS

KEY = Key(0xFEDC_BA98_7654_3210, 2**64 - 1)


class Model(nn.Module):
    """A module with all kinds of entries of a plan. Another process imports it by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=3)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.scaled = nn.Parameter(torch.randn(8, 5) * 0.02)
        self.far = nn.Parameter(torch.empty(4))
        init.trunc_normal_(self.far, a=1.0, b=math.inf)
        self.square = nn.Linear(8, 8)
        nn.init.orthogonal_(self.square.weight)
        self.lstm = nn.LSTM(4, 3)
        self.register_buffer("values", torch.tensor([0.1, 0.2, 0.7]).cumsum(0))
        self.register_buffer("rotary", 1.0 / (1e4 ** (torch.arange(0, 8, 2).float() / 8)), persistent=False)


def saved(folder: Path, key: Key | None = KEY) -> Path:
    path = folder / "model.plan"
    InitPlan.of(deferred_init(Model, key=key)).save(path)
    return path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("key", [None, KEY], ids=["drawn", "keyed"])
@pytest.mark.filterwarnings("ignore:Lazy modules are")
def test_a_plan_comes_back_from_its_file(name: str, key: Key | None, tmp_path: Path) -> None:
    module = deferred_init(MODELS[name], key=key)
    plan = InitPlan.of(module)
    plan.save(tmp_path / "plan")
    loaded = InitPlan.load(tmp_path / "plan")
    assert loaded == plan
    materialize_module(module)
    assert not differences(loaded.apply(MODELS[name]()), module)
    # The same plan gives the same file.
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plan").read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_gets_the_same_bits(threads: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    program = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"torch.set_num_threads({threads})\n"
        "from test_plan import Model\nfrom module_equality import tensors\n"
        "from paraminit_ext import InitPlan\n"
        f"torch.save(tensors(InitPlan.load({str(path)!r}).apply(Model())), {str(path) + '.pt'!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=tmp_path)
    here = tensors(materialize_module(deferred_init(Model, key=KEY)))
    for name, there in torch.load(f"{path}.pt").items():
        if name == "square.weight" and threads != torch.get_num_threads():
            # Threads change the order of summation in matrix products. The contract allows 8 u sqrt(n).
            assert (there - here[name]).abs().max() <= 8 * 2.0**-24 * math.sqrt(8)
        else:
            assert torch.equal(there, here[name]), name


def test_a_plan_prints_as_a_table() -> None:
    lines = str(InitPlan.of(deferred_init(Model, key=KEY))).splitlines()
    assert lines[0].split() == ["name", "kind", "dtype", "shape", "steps"]
    assert sorted(line.split("  ")[0] for line in lines[1:]) == sorted(tensors(Model()))
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["head.weight"].endswith("= table.weight")
    assert by_name["far"].endswith("float32  4       trunc_normal_(a=1, b=inf)")
    assert "mul(t1, other=0.02)" in by_name["scaled"]


def test_a_plan_does_not_change() -> None:
    plan = InitPlan.of(deferred_init(Model, key=KEY))
    with pytest.raises(TypeError):
        plan.entries["x"] = plan.entries["scaled"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.key = None  # type: ignore[misc]
    with pytest.raises(AttributeError):
        plan.entries["scaled"].name = "other"  # type: ignore[misc]
    assert plan != InitPlan.of(deferred_init(Model, key=Key(1)))
    assert copy.deepcopy(plan) is plan
    assert len(plan) == len(list(plan)) == len(plan.entries)


class NotNumbers(nn.Module):
    """A module with NaN in a recorded value, in a fill and in an operator."""

    def __init__(self, first: float = math.nan, zero: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor([first, zero]))
        self.register_buffer("table", torch.full((3,), first))
        self.filled = nn.Parameter(torch.empty(2))
        nn.init.constant_(self.filled, first)


def test_a_plan_with_nan_is_equal_to_its_copies_and_to_no_other(tmp_path: Path) -> None:
    def plan_of(*arguments: Any) -> InitPlan:
        return InitPlan.of(deferred_init(NotNumbers, *arguments, key=KEY))

    plan = plan_of()
    plan.save(tmp_path / "plan")
    copies = [plan, pickle.loads(pickle.dumps(plan)), InitPlan.load(tmp_path / "plan"), plan_of(float("nan"))]
    for other in copies:
        assert plan == other
        assert [hash(entry) for entry in plan] == [hash(entry) for entry in other]
    for arguments in ((1.0,), (math.nan, -0.0)):
        assert plan != plan_of(*arguments)
    (value,) = plan.values
    assert plan != InitPlan(plan.entries, plan.key, {value: plan.values[value].double()})


class Wide(nn.Module):
    """A module with the shapes of a Llama of 70 billion parameters, without its code."""

    def __init__(self, layers: int = 80, width: int = 8192, inner: int = 28672, words: int = 128256) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.self_attn, layer.mlp = nn.Module(), nn.Module()
            for name, out in (("q_proj", width), ("k_proj", 1024), ("v_proj", 1024), ("o_proj", width)):
                layer.self_attn.add_module(name, nn.Linear(width, out, bias=False))
            layer.mlp.gate_proj = nn.Linear(width, inner, bias=False)
            layer.mlp.up_proj = nn.Linear(width, inner, bias=False)
            layer.mlp.down_proj = nn.Linear(inner, width, bias=False)
            layer.input_layernorm, layer.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
            self.layers.append(layer)
        self.norm, self.lm_head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)


@pytest.mark.parametrize("key", [None, KEY], ids=["drawn", "keyed"])
def test_the_plan_of_seventy_billion_parameters_is_small(key: Key | None, tmp_path: Path) -> None:
    module = deferred_init(Wide, key=key)
    assert sum(parameter.numel() for parameter in module.parameters()) > 70e9
    InitPlan.of(module).save(tmp_path / "plan")
    assert (tmp_path / "plan").stat().st_size <= 200_000
    assert len(InitPlan.load(tmp_path / "plan")) == len(list(module.parameters()))


# --- files that are wrong --------------------------------------------------------------------


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the plan in a file, the rest of the header, and the bytes after the header."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    return json.loads(header.pop("__metadata__")["paraminit_ext.InitPlan"]), header, content[8 + size :]


def put(path: Path, plan: Any, header: dict[str, Any], rest: bytes) -> None:
    text = json.dumps({"__metadata__": {"paraminit_ext.InitPlan": json.dumps(plan)}, **header}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def at(plan: Any, *places: Any) -> Any:
    for place in places:
        plan = plan[place]
    return plan


def program_of(plan: Any, name: str) -> Any:
    return plan["programs"][plan["tensors"][name]["program"]]


def with_step(plan: Any, name: str, **fields: Any) -> None:
    program_of(plan, name)["steps"][0].update(fields)


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another version": (lambda p: p.update(version=2), "one of version 2"),
    "no version": (lambda p: p.pop("version"), "one of version None"),
    "an unknown function": (lambda p: with_step(p, "far", do="exec_"), "the unknown function 'exec_'"),
    "a function that reads files": (
        lambda p: with_step(p, "far", do="aten.from_file.default", arguments={"filename": "/etc/passwd"}),
        "the unknown function 'aten.from_file.default'",
    ),
    "a random operator": (
        lambda p: with_step(p, "far", do="aten.bernoulli_.float", arguments={"self": {"slot": 0}}),
        "the unknown function",
    ),
    "an unknown argument": (
        lambda p: at(program_of(p, "far"), "steps", 0, "arguments").update(nonsense=1),
        "the unknown argument 'nonsense' of trunc_normal_",
    ),
    "an argument out of its range": (
        lambda p: at(program_of(p, "far"), "steps", 0, "arguments").update(std=-1.0),
        "steps that do not fit",
    ),
    "an unknown field": (lambda p: p.update(code="import os"), "a plan with the unknown field 'code'"),
    "an unknown dtype": (
        lambda p: program_of(p, "far").update(dtype="float99"),
        "the unknown dtype 'float99'",
    ),
    "an unknown kind": (lambda p: at(p, "tensors", "far").update(kind="thing"), "the unknown kind 'thing'"),
    "an unknown device": (
        lambda p: at(p, "tensors", "far").update(device="moon"),
        "the unknown device 'moon'",
    ),
    "a size below zero": (
        lambda p: program_of(p, "far").update(shape=[-4]),
        "a shape that is not a list of counts",
    ),
    "a size that is no number": (lambda p: program_of(p, "far").update(shape=[True]), "a shape that is not"),
    "a size beyond all memory": (
        lambda p: program_of(p, "far").update(shape=[2**40, 2**40]),
        "a tensor of shape",
    ),
    "a shape that the steps do not give": (
        lambda p: program_of(p, "rotary").update(shape=[5]),
        "steps that give torch.float32 of shape (4,)",
    ),
    "a slot that is not made": (
        lambda p: with_step(p, "far", arguments={"tensor": {"slot": 9}}),
        "steps that do not fit",
    ),
    "a view outside its storage": (
        lambda p: with_step(
            p,
            "far",
            arguments={
                "tensor": {"slot": 0, "view": {"dtype": "float32", "size": [9], "stride": [1], "offset": 0}}
            },
        ),
        "steps that do not fit (a view of 36 bytes of 16)",
    ),
    "an allocation beyond all memory": (
        lambda p: at(program_of(p, "scaled"), "steps", 0, "arguments").update(
            size=[2**62, 9], stride=[2**62, 1]
        ),
        "a tensor of",
    ),
    "a draw too many": (
        lambda p: at(p, "tensors", "far").update(draws=[{}, {}]),
        "a different number of draws than of fills for far",
    ),
    "a fill without a draw": (
        lambda p: program_of(p, "far")["steps"][0].pop("draw"),
        "trunc_normal_ with a wrong draw",
    ),
    "a draw without a key": (lambda p: p.update(key=None), "a draw without a key"),
    "a wrong key": (lambda p: p.update(key="1:zz"), "the key '1:zz'"),
    "a key that is too long": (lambda p: p.update(key="f" * 17 + ":0"), "the key"),
    "a value that is not there": (
        lambda p: with_step(p, "values", arguments={"value": "other"}),
        "the name of a value that is not in the file",
    ),
    "a tie to nothing": (
        lambda p: at(p, "tensors", "head.weight").update(tie="x"),
        "tied to a tensor that is not listed",
    ),
    "a tie to itself": (
        lambda p: at(p, "tensors", "head.weight").update(tie="head.weight"),
        "tied to a tensor that is not listed",
    ),
    "a program that is not there": (
        lambda p: at(p, "tensors", "far").update(program=99),
        "without a program",
    ),
    "steps that are no list": (lambda p: program_of(p, "far").update(steps=3), "steps that are not a list"),
    "a list as a plan": (lambda p: [p], "a plan that is not a JSON object"),
    "a version that is no number": (lambda p: p.update(version=True), "one of version True"),
    "a key with an underscore": (lambda p: p.update(key="1_0:0"), "the key '1_0:0'"),
    "a storage that is a list": (
        lambda p: at(p, "tensors", "far").update(storage=[]),
        "in the storage of a tensor that is not listed",
    ),
    "half a surrogate pair": (
        lambda p: at(p, "tensors", "far").update(draws=[{"name": "\ud800"}]),
        "a wrong draw for far",
    ),
    "a layout as an argument": (
        lambda p: at(program_of(p, "scaled"), "steps", 2, "arguments").update(layout=2),
        "the unknown argument 'layout' of aten.mul.Tensor",
    ),
    "results that lie in too many ways": (
        lambda p: with_step(p, "far", lies=[None, None]),
        "a step with a different number of layouts than of results",
    ),
    "arguments nested deep": (
        lambda p: with_step(
            p, "far", arguments={"tensor": {"slot": 0}, "a": json.loads("[" * 500 + "]" * 500)}
        ),
        "arguments nested too deep",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    plan, header, rest = parts(path)
    change, message = WRONG[name]
    changed = change(plan)
    put(path, changed if isinstance(changed, list) else plan, header, rest)
    with pytest.raises(ValueError, match=r"InitPlan\.load: expected a plan of version 1, got ") as refused:
        InitPlan.load(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plan_written_again_by_hand_is_read(tmp_path: Path) -> None:
    # This shows that only the planted faults cause the errors above.
    path = saved(tmp_path)
    put(path, *parts(path))
    assert InitPlan.load(path) == InitPlan.of(deferred_init(Model, key=KEY))


def test_a_file_without_a_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    for content, message in (
        (None, "a safetensors file without a plan"),
        (b"", "not a safetensors file or is truncated"),
        (b"\xff" * 64, "not a safetensors file or is truncated"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            InitPlan.load(path)
    with pytest.raises(FileNotFoundError, match="expected a file, got"):
        InitPlan.load(tmp_path / "nowhere")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_is_a_plan(
    cut: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = saved(tmp_path_factory.mktemp("plan"))
    content = bytearray(path.read_bytes())
    content[cut % len(content)] ^= flip
    path.write_bytes(bytes(content[: len(content) - cut // 5000]))
    try:
        plan = InitPlan.load(path)
    except ValueError as refused:
        plan, message = None, str(refused)
    if plan is None:
        assert "\n" not in message
    else:
        assert all(isinstance(entry, Entry) for entry in plan)


def test_saving_leaves_a_whole_file_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(tensors: dict[str, Tensor], name: str, **_: Any) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        InitPlan.of(deferred_init(Model, key=KEY)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.plan"]


def test_saving_leaves_the_umask_of_the_process_alone_and_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = InitPlan.of(deferred_init(Model, key=KEY))
    set_umask = os.umask

    def refuse(mask: int) -> int:
        # For a moment, the files of all other threads would get the permissions of this mask.
        raise AssertionError(mask)

    before = set_umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", refuse)
        plan.save(tmp_path / "model.plan")
    finally:
        set_umask(before)
    assert (tmp_path / "model.plan").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none/model.plan", FileNotFoundError), ("", IsADirectoryError), ("file/a.plan", NotADirectoryError)],
)
def test_a_place_that_cannot_be_written_is_one_line(
    name: str, kind: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    with pytest.raises(kind, match=r"^paraminit_ext\.InitPlan\.save: expected a file [^\n]*$"):
        InitPlan.of(deferred_init(nn.Linear, 2, 2, key=KEY)).save(name)
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="Run `pip install safetensors`"):
        InitPlan.load(tmp_path / "plan")
    with pytest.raises(ModuleNotFoundError, match="Run `pip install safetensors`"):
        InitPlan.of(deferred_init(Model, key=KEY)).save(tmp_path / "plan")
    assert not os.listdir(tmp_path)


def test_importing_the_package_imports_none_of_its_extras() -> None:
    program = "import paraminit_ext, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "paraminit_ext" in loaded
    assert not loaded & {"safetensors", "transformers", "timm", "accelerate", "rich", "typer", "matplotlib"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "name", ["normal_", "kaiming_normal_", "xavier_normal_", "uniform_", "xavier_uniform_"]
)
def test_a_module_of_16_bits_gets_the_values_of_32_rounded(name: str, dtype: torch.dtype) -> None:
    # Large enough that a uniform value rounds to the upper bound, below which a 16-bit fill stays.
    def build() -> nn.Module:
        layer = nn.Linear(2048, 1024)
        getattr(nn.init, name)(layer.weight)
        nn.init.ones_(layer.bias)
        return layer

    plan = InitPlan.of(deferred_init(build, key=KEY))
    whole, half = plan.apply(build()), plan.apply(build().to(dtype))
    for expected, got in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(got, expected.to(dtype))
    if name == "uniform_":
        direct = init.uniform_(torch.empty(1024, 2048, dtype=dtype), generator=KEY.fold_in("weight"))
        assert not torch.equal(direct, half.weight)  # type: ignore[arg-type]
