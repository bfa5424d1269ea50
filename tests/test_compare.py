"""``compare()`` finds each planted difference of plans and checkpoints, and reports no other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from paraminit_ext import InitPlan, Key, deferred_init, init, materialize_module
from paraminit_ext.models.checkpoint import save_initialized
from paraminit_ext.models.checkpoint_reader import StoredTensor
from paraminit_ext.models.compare import Comparison, Difference, Values, compare
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.plan import Entry
from paraminit_ext.models.steps import Draw
from test_models import needs
from zoo import TORCH, TRANSFORMERS, Build

# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    """Has tied weights, a row of zeros, an orthogonal matrix, buffers of both kinds and a recorded value."""

    def __init__(self, std: float = 0.02, table: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=2)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.turn = nn.Linear(6, 6)
        nn.init.orthogonal_(self.turn.weight)
        self.wide = nn.Parameter(torch.empty(700, 500))
        nn.init.normal_(self.wide, std=std)
        self.register_buffer("kept", torch.arange(5))
        self.register_buffer("table", torch.tensor([0.5, table, 0.25]))
        self.register_buffer("lost", torch.ones(3), persistent=False)


def plan_of(build: Callable[[], nn.Module] = Model, seed: int = 1) -> InitPlan:
    return InitPlan.of(deferred_init(build, key=Key(seed)))


def changed(plan: InitPlan, name: str, **fields: Any) -> InitPlan:
    """Return the plan with changed fields in the entry of that name."""
    return InitPlan({**plan.entries, name: replace(plan.entries[name], **fields)}, plan.key, plan.values)


def kinds_of_differences(comparison: Comparison, name: str) -> list[str]:
    return [difference.what for difference in comparison.differences if difference.name == name]


def rendered(comparison: Comparison, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(comparison)
    return out.getvalue().rstrip("\n").split("\n")


# ----------------------------------------------------------------------------------------
# Two plans
# ----------------------------------------------------------------------------------------


def test_a_plan_is_equal_to_its_copy_from_a_file(tmp_path: Path) -> None:
    plan = plan_of()
    plan.save(tmp_path / "plan")
    comparison = compare(plan, InitPlan.load(tmp_path / "plan"))
    assert comparison.equal
    assert comparison.tensors == len(plan)
    assert comparison.differences == ()


def planted(plan: InitPlan, what: str) -> tuple[str, InitPlan]:
    """Return a tensor's name, and the plan with one difference of this kind in that tensor."""
    name = "turn.weight"
    entry = plan.entries[name]
    rest = {other: unchanged for other, unchanged in plan.entries.items() if other != name}
    changes: dict[str, dict[str, Any]] = {
        "kind": {"kind": "buffer"},
        "dtype": {"dtype": torch.bfloat16},
        "shape": {"shape": (6, 7)},
        "device": {"device": "cuda"},
        "layout": {"layout": Geometry(entry.dtype, (6, 6), (1, 6), 0)},
        "steps": {"steps": (replace(entry.steps[0], do="xavier_uniform_"), *entry.steps[1:])},
        "numbers": {"draws": (Draw(name, "#1"),)},
        "tie": {"tie": "wide", "steps": (), "draws": ()},
    }
    if what == "only in A":
        return name, InitPlan(rest, plan.key, plan.values)
    if what == "only in B":
        return "more", InitPlan({**plan.entries, "more": replace(entry, name="more")}, plan.key, plan.values)
    return name, changed(plan, name, **changes[what])


KINDS = ["only in A", "only in B", "kind", "dtype", "shape", "device", "layout", "steps", "numbers", "tie"]


@pytest.mark.parametrize("what", KINDS)
def test_each_difference_of_plans_is_found_and_no_other(what: str) -> None:
    plan = plan_of()
    name, other = planted(plan, what)
    comparison = compare(plan, other)
    assert not comparison.equal
    assert [(difference.name, difference.what) for difference in comparison.differences] == [(name, what)]
    (difference,) = comparison.differences
    assert difference.a != difference.b
    # Comparing them in the other order swaps the sides.
    (back,) = compare(other, plan).differences
    assert (back.a, back.b) == (difference.b, difference.a)


def test_a_parameter_of_a_fill_is_a_difference_of_steps_and_is_shown() -> None:
    comparison = compare(plan_of(), plan_of(lambda: Model(std=0.05)))
    assert [(difference.name, difference.what) for difference in comparison.differences] == [
        ("wide", "steps")
    ]
    assert "std=0.02" in comparison.differences[0].a
    assert "std=0.05" in comparison.differences[0].b


def test_a_parameter_that_prints_alike_is_told_apart() -> None:
    (difference,) = compare(plan_of(), plan_of(lambda: Model(std=0.02 + 1e-12))).differences
    assert difference.what == "steps"
    assert difference.a != difference.b


def test_a_recorded_value_is_compared_by_what_it_is_and_not_by_its_name() -> None:
    plan, other = plan_of(), plan_of(lambda: Model(table=2.0))
    assert plan.values
    assert {difference.name for difference in compare(plan, other).differences} == {"table"}
    names = {name: f"again {name}" for name in plan.values}

    def renamed(entry: Entry) -> Entry:
        steps = tuple(
            replace(step, arguments=(("value", names[dict(step.arguments)["value"]]),))
            if step.do == "value"
            else step
            for step in entry.steps
        )
        return replace(entry, steps=steps)

    again = InitPlan(
        {entry.name: renamed(entry) for entry in plan},
        plan.key,
        {names[name]: value for name, value in plan.values.items()},
    )
    assert compare(plan, again).equal


def test_plans_with_nan_are_equal_if_their_bits_are(tmp_path: Path) -> None:
    class NotNumbers(nn.Module):
        def __init__(self, first: float = math.nan, zero: float = 0.0) -> None:
            super().__init__()
            self.register_buffer("values", torch.tensor([first, zero]))
            self.register_buffer("table", torch.full((3,), first))

    plan = plan_of(NotNumbers)
    plan.save(tmp_path / "plan")
    for other in (InitPlan.load(tmp_path / "plan"), plan_of(lambda: NotNumbers(float("nan")))):
        assert compare(plan, other).equal, str(compare(plan, other))
    for build in (lambda: NotNumbers(zero=-0.0), lambda: NotNumbers(zero=1.0)):
        assert kinds_of_differences(compare(plan, plan_of(build)), "values") == ["steps"]
    assert len(compare(plan, plan_of(lambda: NotNumbers(1.0))).differences) == 2


def test_another_seed_is_a_difference_of_numbers_in_every_fill_that_draws() -> None:
    plan, other = plan_of(seed=1), plan_of(seed=2)
    comparison = compare(plan, other)
    drawing = {entry.name for entry in plan if entry.draws}
    assert {(difference.name, difference.what) for difference in comparison.differences} == {
        (name, "numbers") for name in drawing
    }
    assert (comparison.differences[0].a, comparison.differences[0].b) == ("seed 1", "seed 2")
    assert compare(plan, other, ignore_keys=True).equal


def test_keys_drawn_from_a_generator_are_compared_one_by_one() -> None:
    def drawn(seed: int) -> InitPlan:
        torch.manual_seed(seed)
        return InitPlan.of(deferred_init(nn.Linear, 3, 4))

    assert compare(drawn(1), drawn(1)).equal
    comparison = compare(drawn(1), drawn(2))
    assert [difference.what for difference in comparison.differences] == ["numbers", "numbers"]
    assert all(
        difference.a.startswith("key ") and difference.a != difference.b
        for difference in comparison.differences
    )


# ----------------------------------------------------------------------------------------
# Two checkpoints
# ----------------------------------------------------------------------------------------


def tensors() -> dict[str, Tensor]:
    init.normal_(wide := torch.empty(300, 70), generator=Key(5))
    return {
        "layers.0.weight": wide,
        "layers.1.weight": wide.flip(0).contiguous(),
        "half": wide[:40].bfloat16(),
        "eight": wide[:30].to(torch.float8_e4m3fn),
        "count": torch.arange(9),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
        "odd": torch.tensor([math.nan, math.inf, 0.0, -1.0]),
        "both": torch.tensor([1 + 2j, 3 - 4j]),
    }


def save_checkpoint(folder: Path, contents: dict[str, Tensor]) -> Path:
    folder.mkdir()
    safetensors.torch.save_file(contents, folder / "model.safetensors")
    return folder


def test_checkpoints_of_the_same_bits_are_equal_however_they_are_split(tmp_path: Path) -> None:
    contents = tensors()
    one = save_checkpoint(tmp_path / "one", contents)
    (tmp_path / "two").mkdir()
    names = list(contents)
    for place, some in enumerate((names[:4], names[4:])):
        safetensors.torch.save_file(
            {name: contents[name] for name in some}, tmp_path / "two" / f"{place}.safetensors"
        )
    comparison = compare(one, tmp_path / "two")
    assert comparison.equal
    assert comparison.tensors == len(contents)
    assert comparison.nbytes == sum(tensor.nbytes for tensor in contents.values())


def test_each_difference_of_names_dtypes_and_shapes_is_found(tmp_path: Path) -> None:
    contents = tensors()
    other = {name: tensor for name, tensor in contents.items() if name != "one"}
    other |= {"half": contents["half"].half(), "count": torch.arange(10), "new": torch.ones(2)}
    comparison = compare(save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", other))
    assert {
        (difference.name, difference.what, difference.a, difference.b)
        for difference in comparison.differences
    } == {
        ("one", "only in A", "scalar", ""),
        ("new", "only in B", "", "2"),
        ("half", "dtype", "bfloat16", "float16"),
        ("count", "shape", "9", "10"),
    }


@pytest.mark.parametrize(
    ("name", "place", "value", "first", "largest"),
    [
        ("layers.0.weight", 70 * 299 + 69, 100.0, (299, 69), None),
        ("layers.1.weight", 71, 3.0, (1, 1), None),
        ("half", 5, 2.0, (0, 5), None),
        ("eight", 30, 4.0, (0, 30), None),
        ("count", 7, 3, (7,), 4.0),
        ("one", 0, 3.0, (), 0.5),
        ("odd", 2, -0.0, (2,), 0.0),
        ("odd", 3, math.nan, (3,), math.nan),
        ("odd", 3, -math.inf, (3,), math.inf),
        ("both", 1, 3 + 0j, (1,), 4.0),
    ],
)
def test_one_element_that_differs_is_found_with_its_place_and_size(
    name: str, place: int, value: Any, first: tuple[int, ...], largest: float | None, tmp_path: Path
) -> None:
    contents, other = tensors(), tensors()
    other[name].view(-1)[place] = value
    if largest is None:
        largest = abs(float(contents[name].view(-1)[place]) - float(other[name].view(-1)[place]))
    comparison = compare(save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", other))
    assert len(comparison.differences) == 1
    (difference,) = comparison.differences
    assert (difference.name, difference.what) == (name, "values")
    assert difference.values is not None
    assert (difference.values.differing, difference.values.numel, difference.values.first) == (
        1,
        contents[name].numel(),
        first,
    )
    assert difference.values.largest == pytest.approx(largest, nan_ok=True)


def test_values_are_counted_over_pieces_and_never_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    elements = StoredTensor.elements

    def record(self: StoredTensor, begin: int, end: int, buffer: bytearray | None = None) -> Tensor:
        read.append(end - begin)
        return elements(self, begin, end, buffer)

    monkeypatch.setattr(StoredTensor, "elements", record)
    monkeypatch.setattr("paraminit_ext.models.checkpoint_reader.StoredTensor.parts.__defaults__", (1000,))
    contents, other = {"wide": torch.zeros(100, 77)}, {"wide": torch.zeros(100, 77)}
    other["wide"][3:, 5] = torch.arange(97.0)
    comparison = compare(save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", other))
    (difference,) = comparison.differences
    # The first of the 97 values is zero on both sides.
    assert difference.values == Values(96, 7700, (4, 5), 96.0)
    assert max(read) == 250
    assert sum(read) == 2 * 7700


def test_a_dtype_that_torch_does_not_have_is_compared_by_its_bytes(tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> Path:
        header = {"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}
        text = json.dumps(header).encode()
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + content)
        return tmp_path / name

    one, same, other = write("a", b"\x00\x01\x02"), write("b", b"\x00\x01\x02"), write("c", b"\x00\x01\x03")
    assert compare(one, same).equal
    assert kinds_of_differences(compare(one, other), "x") == ["values"]


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    a, b = save_checkpoint(tmp_path / "a", tensors()), save_checkpoint(tmp_path / "b", tensors())
    comparison = compare(a, b, advance=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (comparison.nbytes, comparison.nbytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ----------------------------------------------------------------------------------------
# A plan and a checkpoint
# ----------------------------------------------------------------------------------------


def state(plan: InitPlan, build: Callable[[], nn.Module] = Model) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint of the plan's model: of tied tensors, only the first."""
    model = materialize_module(deferred_init(build, key=plan.key))
    parameters = dict(model.named_parameters())
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in parameters} | {
        name: tensor for name, tensor in model.named_buffers() if name != "lost"
    }


def test_a_plan_is_equal_to_the_checkpoint_of_its_values_in_either_order(tmp_path: Path) -> None:
    plan = plan_of()
    folder = save_checkpoint(tmp_path / "out", state(plan))
    for comparison in (compare(plan, folder), compare(folder, plan)):
        assert comparison.equal, str(comparison)
        assert comparison.rounded == 0
        assert comparison.nbytes == sum(tensor.nbytes for tensor in state(plan).values())


def test_any_of_the_tied_names_is_enough_and_each_that_is_present_is_compared(tmp_path: Path) -> None:
    plan = plan_of()
    contents = state(plan)
    contents["head.weight"] = contents.pop("embedding.weight")
    assert compare(plan, save_checkpoint(tmp_path / "other", contents)).equal
    wrong = contents | {"embedding.weight": contents["head.weight"] + 1}
    comparison = compare(plan, save_checkpoint(tmp_path / "wrong", wrong))
    assert [(difference.name, difference.what) for difference in comparison.differences] == [
        ("embedding.weight", "values")
    ]
    del contents["head.weight"]
    comparison = compare(plan, save_checkpoint(tmp_path / "neither", contents))
    assert [(difference.name, difference.what) for difference in comparison.differences] == [
        ("embedding.weight", "only in A")
    ]


def test_a_buffer_that_checkpoints_leave_out_is_compared_where_it_is_there(tmp_path: Path) -> None:
    plan = plan_of()
    assert compare(plan, save_checkpoint(tmp_path / "same", state(plan) | {"lost": torch.ones(3)})).equal
    comparison = compare(plan, save_checkpoint(tmp_path / "other", state(plan) | {"lost": torch.zeros(3)}))
    assert kinds_of_differences(comparison, "lost") == ["values"]


@pytest.mark.parametrize("name", ["embedding.weight", "turn.weight", "turn.bias", "wide", "kept", "table"])
def test_an_element_that_is_not_the_plans_is_found_in_every_kind_of_tensor(name: str, tmp_path: Path) -> None:
    plan = plan_of()
    contents = state(plan)
    contents[name] = contents[name].clone()
    place = contents[name].numel() - 2
    contents[name].view(-1)[place] += 1
    comparison = compare(plan, save_checkpoint(tmp_path / "out", contents))
    assert [(difference.name, difference.what) for difference in comparison.differences] == [(name, "values")]
    values = comparison.differences[0].values
    assert values is not None
    assert values.differing == 1
    assert values.largest == pytest.approx(1, rel=1e-6)


def test_a_checkpoint_in_another_dtype_is_compared_with_the_values_rounded_to_it(tmp_path: Path) -> None:
    plan = plan_of()
    contents = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in state(plan).items()
    }
    comparison = compare(plan, save_checkpoint(tmp_path / "half", contents))
    assert comparison.equal, str(comparison)
    assert comparison.rounded == sum(tensor.is_floating_point() for tensor in contents.values())
    assert "rounded to the checkpoint's dtype" in str(comparison)
    contents["kept"] = contents["kept"].int()
    comparison = compare(plan, save_checkpoint(tmp_path / "integer", contents))
    assert [(difference.name, difference.what) for difference in comparison.differences] == [
        ("kept", "dtype")
    ]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_a_module_is_rounded_to_the_dtype_of_the_checkpoint_as_its_plan_is(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    model = deferred_init(Model, key=Key(1))
    save_initialized(model, tmp_path / "whole", progress=False)
    folder = save_initialized(model, tmp_path / "out", dtype=dtype, progress=False)[0].parent
    plan = InitPlan.of(model)
    by_module, by_plan = compare(model, folder), compare(plan, folder)
    assert by_module.equal, str(by_module)
    assert by_module == by_plan
    assert by_module.rounded > 0
    assert compare(folder, model) == by_module
    assert compare(model, tmp_path / "whole").rounded == 0
    # The values are compared, not only the dtypes.
    assert set(kinds_of_differences(compare(deferred_init(Model, key=Key(2)), folder), "wide")) == {"values"}
    assert compare(model, folder, key=Key(2)) == compare(plan, folder, key=Key(2))


def test_a_key_takes_the_place_of_the_plans_own(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "out", state(plan_of(seed=2)))
    assert not compare(plan_of(seed=1), folder).equal
    assert compare(plan_of(seed=1), folder, key=Key(2)).equal


def test_what_a_model_left_as_it_was_allocated_has_any_values(tmp_path: Path) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Parameter(torch.empty(3))

    plan = plan_of(Left)
    assert compare(plan, save_checkpoint(tmp_path / "out", {"left": torch.rand(3)})).equal
    assert kinds_of_differences(
        compare(plan, save_checkpoint(tmp_path / "more", {"left": torch.rand(4)})), "left"
    ) == ["shape"]


@pytest.mark.parametrize(
    "build",
    [
        *(pytest.param(build, id=name) for name, build in TORCH.items()),
        *(
            pytest.param(TRANSFORMERS[name], id=name, marks=needs("transformers"))
            for name in ("Llama", "GPT-2", "T5", "BERT")
        ),
    ],
)
def test_what_save_initialized_writes_is_what_the_plan_gives(build: Build, tmp_path: Path) -> None:
    model = deferred_init(build, key=Key(3))
    save_initialized(model, tmp_path, max_shard_size="100KB", progress=False)
    comparison = compare(InitPlan.of(model), tmp_path)
    assert comparison.equal, str(comparison)
    assert comparison.nbytes > 0
    assert not compare(InitPlan.of(model), tmp_path, key=Key(4)).equal


# ----------------------------------------------------------------------------------------
# Arguments and output
# ----------------------------------------------------------------------------------------


@needs("transformers")
@pytest.mark.parametrize("name", ["Mixtral", "ViT", "Llama"])
def test_a_module_has_the_names_that_its_checkpoint_has(name: str, tmp_path: Path) -> None:
    module = deferred_init(TRANSFORMERS[name], key=Key(1))
    save_initialized(module, tmp_path)
    comparison = compare(module, tmp_path)
    assert comparison.equal, str(comparison)
    assert comparison.nbytes > 0
    assert not compare(tmp_path, deferred_init(TRANSFORMERS[name], key=Key(2))).equal
    # Compared with a plan, a module stands for its own plan.
    assert compare(module, InitPlan.of(module)).equal


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((3, "plan"), {}, TypeError, "expected an InitPlan, a module or a path, got int"),
        (("plan", "plan"), {"key": 3}, TypeError, "expected a paraminit_ext.Key or None for key, got int"),
        (("plan", "plan"), {"key": Key(1)}, TypeError, "with a key, got 2 plans"),
        (("folder", "folder"), {"key": Key(1)}, TypeError, "with a key, got 0 plans"),
        (("plan", "folder"), {"ignore_keys": True}, TypeError, "expected two plans with ignore_keys"),
        (("missing", "folder"), {}, OSError, "missing"),
        (("empty", "folder"), {}, ValueError, "expected a directory with safetensors files, got none"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: tuple[Any, Any], keywords: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    targets: dict[Any, Any] = {
        "plan": plan_of(),
        "folder": save_checkpoint(tmp_path / "folder", tensors()),
        "missing": tmp_path / "missing",
        "empty": tmp_path / "empty",
    }
    with pytest.raises(error, match=message):
        compare(*(targets.get(argument, argument) for argument in arguments), **keywords)


def all_kinds(tmp_path: Path) -> list[Comparison]:
    plan, other = plan_of(TORCH["Transformer"], 1), plan_of(TORCH["Transformer"], 2)
    name = "encoder.layers.0.self_attn.in_proj_weight"
    other = changed(
        other,
        name,
        kind="non-persistent buffer",
        steps=other.entries["encoder.layers.0.linear1.bias"].steps,
        dtype=torch.bfloat16,
        shape=(1, 2),
    )
    contents = state(plan, TORCH["Transformer"])
    spoiled = {name: tensor + 1 if "0" in name else tensor for name, tensor in contents.items()}
    folders = save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", spoiled)
    return [compare(plan, other), compare(*folders), compare(plan, folders[1]), compare(plan, folders[0])]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_the_terminal_and_cuts_nothing(width: int, tmp_path: Path) -> None:
    for comparison in all_kinds(tmp_path):
        lines = rendered(comparison, width)
        assert all(len(line) <= width for line in lines)
        text = "\n".join(lines)
        assert "\u2026" not in text
        for name, what, how in comparison._rows():
            assert f"{name} " in f"{text.replace(chr(10), ' ')} "
            assert what in text
            assert all(part in " ".join(text.split()) for part in how.split(" -> "))
        assert lines[-1] == comparison._foot()


def test_layers_that_differ_alike_are_one_row(tmp_path: Path) -> None:
    contents = {f"layers.{place}.weight": torch.zeros(4, 4) for place in range(12)}
    other = {name: tensor + 2 for name, tensor in contents.items()}
    comparison = compare(save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", other))
    assert len(comparison.differences) == 12
    assert str(comparison).split("\n") == [
        "layers.*.weight x 12  values: all of 192, by up to 2",
        "12 of 12 tensors differ; 768 bytes compared",
    ]


def test_json_has_every_field_even_if_a_difference_is_no_number(tmp_path: Path) -> None:
    contents, other = tensors(), tensors()
    other["odd"][3] = math.nan
    other["one"] = torch.tensor(3.0)
    comparison = compare(save_checkpoint(tmp_path / "a", contents), save_checkpoint(tmp_path / "b", other))
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert record["equal"] is False
    assert record["tensors"] == len(contents)
    by_name = {difference["name"]: difference for difference in record["differences"]}
    assert by_name["odd"] == {
        "name": "odd",
        "what": "values",
        "differing": 1,
        "numel": 4,
        "first": [3],
        "largest": "nan",
    }
    assert by_name["one"]["largest"] == 0.5
    assert Difference("x", "dtype", "float32", "bfloat16").to_dict()["b"] == "bfloat16"
