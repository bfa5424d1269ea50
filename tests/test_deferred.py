"""``deferred_init`` and materialisation: the result is the module that the code would have built directly."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from module_equality import bits, differences, patched, seeded, tensors
from paraminit_ext import (
    InitPlan,
    Key,
    deferred_init,
    init,
    keyed,
    materialize_module,
    materialize_tensor,
    patch,
)

KEY = Key(21)
# An argument of a wrong type, which the type checker accepts.
THREE: Any = 3


def steps(module: nn.Module, name: str) -> str:
    return "; ".join(map(str, InitPlan.of(module).entries[name].steps))


class Holds(nn.Module):
    """A module whose contents ``make`` adds."""

    def __init__(self, make: Callable[[Holds], None]) -> None:
        super().__init__()
        make(self)


def holding(make: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    return lambda: Holds(make)


def parameter(tensor: Tensor) -> Callable[[nn.Module], None]:
    return lambda module: module.register_parameter("w", nn.Parameter(tensor))


def buffer(make: Callable[[], Tensor], persistent: bool = True) -> Callable[[nn.Module], None]:
    return lambda module: module.register_buffer("b", make(), persistent=persistent)


def parameter_from(make: Callable[[], Tensor]) -> Callable[[nn.Module], None]:
    return lambda module: module.register_parameter("w", nn.Parameter(make()))


def chunked(module: nn.Module) -> None:
    module.w = nn.Parameter(torch.empty(12, 4))
    nn.init.kaiming_uniform_(module.w)
    for part in module.w.chunk(3):
        nn.init.xavier_uniform_(part)


def slices(module: nn.Module) -> None:
    module.w = nn.Parameter(torch.ones(6, 4))
    with torch.no_grad():
        module.w[1:3].normal_()
        module.w[2] = 0
        module.w[:, 1] += 1
        module.w.view(-1)[5:7].copy_(torch.tensor([3.0, 4.0]))
        module.w[module.w == 1] = 7


def same_storage(module: nn.Module) -> None:
    whole = torch.empty(10, 4).normal_()
    module.a, module.b = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    module.register_buffer("c", whole.t())
    whole[2].zero_()


def attributes(module: Any) -> None:
    module.register_buffer("b", torch.arange(4.0))
    module.plain = torch.arange(3) * 2
    module.several = [torch.zeros(2), {"x": torch.linspace(0, 1, 3)}]
    module.real = torch.tensor(0.5)


def from_numpy(module: nn.Module) -> None:
    table = np.sin(np.arange(12.0).reshape(3, 4))
    module.w = nn.Parameter(torch.empty(3, 4))
    with torch.no_grad():
        module.w.copy_(torch.from_numpy(table))
    module.register_buffer("b", torch.from_numpy(table))
    module.register_buffer("c", torch.tensor([1, 2, 3], device=module.w.device))
    module.register_buffer("d", module.w.new_tensor([4.0, 5.0]))


def random_values(module: nn.Module) -> None:
    module.register_buffer("order", torch.randperm(7))
    module.register_buffer("coin", torch.empty(9).bernoulli_(0.5))
    module.w = nn.Parameter(torch.empty(3).exponential_())
    module.v = nn.Parameter(torch.empty(3).normal_())
    module.register_buffer("pick", torch.multinomial(torch.arange(1.0, 9.0), 3))


def reads(module: nn.Module) -> None:
    rates = [x.item() for x in torch.linspace(0, 0.3, 4)]
    assert rates[-1] == pytest.approx(0.3)
    assert torch.arange(3).tolist() == [0, 1, 2]
    assert bool((torch.arange(3) < 5).all())
    assert torch.ones(2).numpy().sum() == 2
    module.w = nn.Parameter(torch.full((2,), rates[1]))


def numbers_written(module: nn.Module) -> None:
    a = torch.tensor([1.0, 2.0, 3.0])
    a.mul_(torch.full((3,), 2.0))
    a[1:] = torch.zeros(2)
    torch.add(torch.ones(3), 1, out=a[:3])
    module.register_buffer("a", a)
    module.w = nn.Parameter(torch.from_numpy(np.zeros((3, 2), "f")))
    module.v = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    with torch.no_grad():
        module.w.copy_(torch.ones(3, 2))
        module.v.data[0] = module.w.data[1]
    nn.init.normal_(module.v)
    y = a.to(module.w.device)
    y.add_(1)


def random_with_out(module: nn.Module) -> None:
    order, numbers = torch.zeros(5, dtype=torch.long), torch.zeros(5)
    torch.randperm(5, out=order)
    torch.rand(5, out=numbers)
    module.register_buffer("order", order)
    module.register_buffer("numbers", numbers)
    x = -torch.ones(20)
    nn.functional.rrelu(x, training=True, inplace=True)
    module.register_buffer("x", x)
    g = torch.Generator().manual_seed(3)
    module.register_buffer("given", torch.randperm(4, generator=g))
    with torch.inference_mode():
        inferred = nn.functional.dropout(torch.ones(20), 0.5, inplace=True)
    module.register_buffer("inferred", inferred.clone())


def random_in_any_order(module: nn.Module) -> None:
    module.a = nn.Parameter(torch.empty(40, 50).t().exponential_())
    module.register_buffer("b", torch.empty(4, 3, 5, 5).to(memory_format=torch.channels_last).exponential_())
    module.w = nn.Parameter(torch.zeros(4, 6))
    module.w.data.t().bernoulli_(0.5)


def aliases_of_the_device(module: nn.Module) -> None:
    x = torch.zeros(3)
    x.cpu()[0] = 5
    x.to("cpu", torch.float32)[1] = 6
    x.to(x)[2] = 7
    x.type_as(torch.tensor(1.0)).add_(1)
    module.register_buffer("x", x)
    module.w = nn.Parameter(torch.empty(3))
    module.w.data.to("cpu").normal_()
    assert module.w.device.type == "cpu"
    assert not module.w.is_meta
    module.register_buffer("same", torch.ones(2) * float(module.w.device == x.device))


def laid_out_otherwise(module: nn.Module) -> None:
    x = torch.arange(12.0).view(4, 3).t()
    module.register_buffer("a", (2.0**x).t().contiguous())
    module.register_buffer("b", torch.pow(10.0, x)[:, 1:] * 1)
    module.register_buffer("c", x[None][:, torch.tensor([1, 0])][0][0].clone())
    module.register_buffer("d", (10000.0**x)[1])


def overlapping(module: nn.Module) -> None:
    x = torch.arange(9.0)
    torch.as_strided(x, (3, 3), (2, 2)).fill_(7.0)
    module.register_buffer("x", x)


def loaded(module: nn.Module) -> None:
    file = io.BytesIO()
    torch.save({"w": np.arange(3), "t": torch.tensor([1.0, 2.0])[1:]}["t"], file)
    file.seek(0)
    module.register_buffer("t", torch.load(file))
    module.w = nn.Parameter(torch.empty(2))
    module.w.data = torch.from_numpy(np.ones(2, "f"))


def numbers_of_tensors(module: nn.Module) -> None:
    module.register_buffer("a", torch.tensor([torch.arange(4.0).sum(), 1.0]))
    module.register_buffer("b", torch.tensor(list(torch.linspace(0, 1, 3))))
    module.register_buffer("c", torch.distributions.Normal(torch.zeros(3), 1.0).mean)
    module.register_buffer("d", torch.mul(torch.ones(2), 3, out=torch.empty(0)))
    module.register_buffer("e", torch.linalg.vander(torch.arange(1.0, 4.0)))
    module.register_buffer("f", 1 / torch.arange(1, 5))
    module.p = nn.Parameter(torch.distributions.Normal(torch.zeros(3), 1.0).sample())
    module.l = nn.LazyLinear(3)
    module.l(torch.ones(2, 4))


def on_meta_itself(module: nn.Module) -> None:
    nn.Linear(4, 4, device="meta")
    with torch.device("meta"):
        module.l = nn.Linear(2, 2)
    module.l.to_empty(device="cpu")
    module.l.reset_parameters()
    module.k = nn.Linear(2, 2)


def nested(module: nn.Module) -> None:
    module.a = materialize_module(deferred_init(nn.Linear, 3, 4))
    module.b = materialize_module(deferred_init(nn.Linear, 4, 2))


def tied_by_data(module: nn.Module) -> None:
    module.e, module.d = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    module.d.weight.data = module.e.weight.data
    whole = torch.empty(4, 2).normal_()
    module.a, module.b = nn.Parameter(whole), nn.Parameter(whole)


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Linear(4, 3)
        self.target = copy.deepcopy(self.online)
        self.norm = nn.BatchNorm1d(3)
        self.also = copy.deepcopy(self.norm)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "arithmetic": holding(parameter_from(lambda: torch.randn(5, 4) * 0.02 + 1)),
    "in place": holding(parameter_from(lambda: torch.empty(5, 4).normal_(0, 2).mul_(3).clamp_(-1, 1))),
    "added": holding(parameter_from(lambda: torch.randn(5, 4) + torch.rand(5, 4).log())),
    "transposed": holding(parameter_from(lambda: torch.empty(4, 5).t().uniform_())),
    "channels last": holding(
        parameter_from(lambda: torch.empty(2, 3, 4, 4, memory_format=torch.channels_last).normal_())
    ),
    "chunks": holding(chunked),
    "slices": holding(slices),
    "one storage": holding(same_storage),
    "attributes": holding(attributes),
    "NumPy": holding(from_numpy),
    "random": holding(random_values),
    "reads": holding(reads),
    "position ids": holding(buffer(lambda: torch.arange(9).expand((1, -1)))),
    "rotary": holding(
        buffer(lambda: 1.0 / (10000 ** (torch.arange(0, 16, 2).float() / 16)), persistent=False)
    ),
    "expanded": holding(buffer(lambda: torch.arange(3.0)[:, None].expand(3, 5))),
    "mask": holding(buffer(lambda: torch.tril(torch.ones(5, 5, dtype=torch.bool)))),
    "integers": holding(buffer(lambda: torch.zeros((), dtype=torch.long))),
    "complex": holding(parameter_from(lambda: torch.randn(3, 4, dtype=torch.complex64))),
    "half": holding(parameter_from(lambda: torch.empty(3, 4, dtype=torch.float16).normal_().half())),
    "cast": holding(parameter_from(lambda: torch.randn(30, 4).to(torch.bfloat16))),
    "a scalar": holding(parameter_from(lambda: torch.tensor(0.25) * torch.ones(()))),
    "no elements": holding(parameter_from(lambda: torch.empty(0, 4).normal_())),
    "twins": Twins,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    "lstm": lambda: nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "padding": lambda: nn.Embedding(7, 3, padding_idx=2),
    "numbers written": holding(numbers_written),
    "random with out": holding(random_with_out),
    "random in any order": holding(random_in_any_order),
    "aliases of the device": holding(aliases_of_the_device),
    "overlapping": holding(overlapping),
    "loaded": holding(loaded),
    "numbers of tensors": holding(numbers_of_tensors),
    "on meta itself": holding(on_meta_itself),
    "nested": holding(nested),
    "tied by data": holding(tied_by_data),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 3)),
    "moved": lambda: nn.Linear(3, 4).double().to("cpu", torch.float16),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Lazy modules are")
def test_a_deferred_module_is_the_one_built_directly(name: str) -> None:
    direct, deferred = patched(MODELS[name]), seeded(lambda: deferred_init(MODELS[name]))
    assert all(t.is_meta for t in tensors(deferred).values() if not nn.parameter.is_lazy(t))
    state = torch.get_rng_state()
    assert materialize_module(deferred) is deferred
    assert not differences(direct, deferred)
    assert "_apply" not in vars(deferred)
    # Materialising draws nothing. The recording draws as much as direct building.
    assert torch.equal(torch.get_rng_state(), state)
    patched(MODELS[name])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Lazy modules are")
def test_a_plan_gives_any_module_of_these_names_the_same(name: str) -> None:
    deferred = deferred_init(MODELS[name], key=KEY)
    plan = InitPlan.of(deferred)
    materialize_module(deferred)
    other = MODELS[name]()
    assert plan.apply(other) is other
    assert not differences(deferred, other)


@pytest.mark.parametrize("name", ["chunks", "twins", "padding", "one storage", "spectral norm"])
def test_parts_are_materialised_in_any_order(name: str) -> None:
    expected, parts = (deferred_init(MODELS[name], key=KEY) for _ in range(2))
    materialize_module(expected)
    for tensor in reversed(list(tensors(parts).values())):
        assert materialize_tensor(tensor) is tensor
        assert materialize_tensor(tensor) is tensor
    materialize_module(parts)
    if name != "one storage":
        assert not differences(expected, parts)
    assert all(
        torch.equal(bits(a), bits(b))
        for a, b in zip(tensors(expected).values(), tensors(parts).values(), strict=True)
    )


def test_tensors_of_one_storage_stay_so() -> None:
    module = materialize_module(deferred_init(MODELS["one storage"]))
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors(module).values()}
    assert len(storages) == 1
    with torch.no_grad():
        module.get_parameter("a")[1] = 5
    assert (module.get_buffer("c")[:, 1] == 5).all()


def test_operators_that_lay_out_their_results_otherwise_give_the_same_values() -> None:
    build = holding(laid_out_otherwise)
    direct, deferred = patched(build), materialize_module(seeded(lambda: deferred_init(build)))
    for name, buffer in direct.named_buffers():
        assert torch.equal(buffer, deferred.get_buffer(name)), name


def test_tensors_tied_by_their_data_train_as_one() -> None:
    module: Any = materialize_module(deferred_init(MODELS["tied by data"]))
    with torch.no_grad():
        module.e.weight[0] = 5
        module.a[1] = 6
    assert (module.d.weight[0] == 5).all()
    assert (module.b[1] == 6).all()


# --- keys ------------------------------------------------------------------------------------


def test_the_numbers_of_a_parameter_come_from_its_name() -> None:
    module = materialize_module(
        deferred_init(lambda: nn.Sequential(nn.ReLU(), nn.MultiheadAttention(16, 2)), key=KEY)
    )
    name = "1.in_proj_weight"
    expected = init.xavier_uniform_(torch.empty(48, 16), generator=KEY.fold_in(name))
    assert torch.equal(module.get_parameter(name), expected)


def test_further_random_values_take_further_keys() -> None:
    own = KEY.fold_in("w")
    module = materialize_module(deferred_init(MODELS["added"], key=KEY))
    first = init.normal_(torch.empty(5, 4), generator=own)
    second = init.uniform_(torch.empty(5, 4), generator=own.fold_in("#1"))
    assert torch.equal(module.get_parameter("w"), first + second.log())


def test_chunks_take_the_keys_of_their_offsets_as_under_keyed() -> None:
    module = materialize_module(deferred_init(MODELS["chunks"], key=KEY))
    own = KEY.fold_in("w")
    for index, part in enumerate(module.get_parameter("w").chunk(3)):
        assert torch.equal(part, init.xavier_uniform_(torch.empty(4, 4), generator=own.fold_in(index * 16)))


def fill_a_copy(m: Any) -> None:
    nn.init.normal_(m.b)
    m.a.data.copy_(m.b)


def fill_a_function_of_it(m: Any) -> None:
    nn.init.normal_(m.b)
    m.a.data.copy_(m.b * 2 + 1)


def fill_both_and_copy(m: Any) -> None:
    nn.init.uniform_(m.a)
    nn.init.normal_(m.b)
    m.a.data.add_(m.b)


def fill_twice(m: Any) -> None:
    nn.init.normal_(m.b)
    m.a.data.copy_(m.b)
    nn.init.uniform_(m.b)


def fill_a_part_and_copy_it(m: Any) -> None:
    nn.init.normal_(m.b)
    nn.init.uniform_(m.b[1:])
    m.a.data.copy_(m.b)


def fill_real_and_imaginary_parts(m: Any) -> None:
    nn.init.normal_(m.w.real)
    nn.init.normal_(m.w.imag)


def fill_whole_and_part(m: Any) -> None:
    nn.init.normal_(m.flat)
    nn.init.uniform_(m.part)


def two(m: Any) -> None:
    m.a, m.b = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))


def shared(m: Any) -> None:
    m.flat = nn.Parameter(torch.zeros(12))
    m.part = nn.Parameter(m.flat.data[4:8])


def shared_with_an_attribute(m: Any) -> None:
    m.flat = nn.Parameter(torch.zeros(12))
    m.part = m.flat.data[4:8]


# The tensors of a module, and a function that fills them.
BY_NAME: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "a copy of a later one": (two, fill_a_copy),
    "computed from a later one": (two, fill_a_function_of_it),
    "a sum with a later one": (two, fill_both_and_copy),
    "two fills": (two, fill_twice),
    "a copy of parts": (two, fill_a_part_and_copy_it),
    "shared storage": (shared, fill_whole_and_part),
    "a part of shared storage": (shared, lambda m: nn.init.uniform_(m.part)),
    "shared with an attribute": (shared_with_an_attribute, fill_whole_and_part),
    "parts of a complex one": (
        lambda m: m.register_parameter("w", nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))),
        fill_real_and_imaginary_parts,
    ),
    "a complex one as real": (
        lambda m: m.register_parameter("w", nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))),
        lambda m: nn.init.normal_(torch.view_as_real(m.w.data)),
    ),
    "transposed": (two, lambda m: [nn.init.normal_(m.a.t()), nn.init.normal_(m.b.view(2, 8))]),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_deferred_module_has_the_values_of_keyed(name: str) -> None:
    make, fill = BY_NAME[name]

    def build() -> nn.Module:
        module = Holds(make)
        with torch.no_grad():
            fill(module)
        return module

    named = Holds(make)
    with keyed(named, KEY), torch.no_grad():
        fill(named)
    assert not differences(named, materialize_module(deferred_init(build, key=KEY)))


def copied_and_replaced(module: Any) -> None:
    two(module)
    values = torch.empty(4, 4).normal_()
    nn.init.normal_(module.b)
    module.a.data.copy_(module.b)
    module.b.data.copy_(values)
    nn.init.normal_(module.b[0])


def filled_twice(module: Any) -> None:
    two(module)
    nn.init.normal_(module.a)
    before = module.a.data.clone()
    nn.init.normal_(module.a)
    module.a.data.add_(before)


def test_random_values_without_a_name_never_repeat_those_of_a_fill() -> None:
    module = materialize_module(deferred_init(holding(copied_and_replaced), key=KEY))
    a, b = module.get_parameter("a"), module.get_parameter("b")
    assert not torch.equal(a[1:], b[1:])
    assert torch.equal(a, init.normal_(torch.empty(4, 4), generator=KEY.fold_in("b")))
    module = materialize_module(deferred_init(holding(filled_twice), key=KEY))
    own = KEY.fold_in("a")
    first, second = (init.normal_(torch.empty(4, 4), generator=key) for key in (own, own.fold_in("#1")))
    assert torch.equal(module.get_parameter("a"), second + first)


class Plain(nn.Parameter):
    """A subclass that overrides nothing."""


def test_a_parameter_subclass_that_overrides_nothing_is_recorded_as_a_fill() -> None:
    def build() -> nn.Module:
        module = nn.Module()
        module.w = Plain(torch.empty(1024, 1024))  # more than a plan holds of other random values
        nn.init.normal_(module.w)
        return module

    module: Any = materialize_module(deferred_init(build, key=KEY))
    assert type(module.w) is Plain
    assert torch.equal(module.w, init.normal_(torch.empty(1024, 1024), generator=KEY.fold_in("w")))


def test_a_copy_has_the_values_of_its_original() -> None:
    module = materialize_module(deferred_init(Twins, key=KEY))
    assert torch.equal(module.online.weight, module.target.weight)
    weight = init.kaiming_uniform_(torch.empty(3, 4), a=5**0.5, generator=KEY.fold_in("online.weight"))
    assert torch.equal(module.target.weight, weight)


def test_a_key_that_the_code_passes_stays() -> None:
    build = holding(parameter_from(lambda: init.normal_(torch.empty(3), generator=Key(4))))
    plan = InitPlan.of(deferred_init(build, key=KEY))
    for key in (None, Key(99)):
        assert torch.equal(
            plan.apply(build(), key).get_parameter("w"), init.normal_(torch.empty(3), generator=Key(4))
        )


def test_another_key_gives_another_model_of_the_same_plan() -> None:
    plan = InitPlan.of(deferred_init(nn.Linear, 3, 4))  # without a key
    weight: Any = plan.apply(nn.Linear(3, 4), key=KEY).weight
    assert torch.equal(
        weight, init.kaiming_uniform_(torch.empty(4, 3), a=5**0.5, generator=KEY.fold_in("weight"))
    )


@pytest.mark.parametrize("inside", [True, False])
def test_a_patch_inside_or_around_the_recording_gives_the_plan_its_key(inside: bool) -> None:
    @patch(key=Key(6))
    def build() -> nn.Module:
        return Twins()

    def deferred() -> nn.Module:
        return deferred_init(build if inside else Twins)

    expected = build()
    late = deferred() if inside else patch(key=Key(6))(deferred)()
    assert not differences(expected, materialize_module(late))


# --- after the recording ---------------------------------------------------------------------


def test_only_live_steps_are_kept() -> None:
    def overwritten() -> nn.Module:
        layer = nn.Linear(8, 8)
        nn.init.normal_(layer.weight)
        nn.init.orthogonal_(layer.weight)
        layer.bias.data.fill_(3).zero_()
        return layer

    module = deferred_init(overwritten)
    assert (steps(module, "weight"), steps(module, "bias")) == ("orthogonal_()", "zero_()")
    # Chunks that cover the whole tensor make its earlier steps dead.
    assert "kaiming" not in steps(deferred_init(MODELS["chunks"]), "w")
    # A row that is set later does not.
    assert steps(deferred_init(MODELS["padding"]), "weight").startswith("normal_(); fill_")


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.half().float(),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.cpu(),
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: m.requires_grad_(False),
        lambda m: m.eval(),
    ],
)
def test_a_conversion_does_what_it_does_to_a_built_module(convert: Callable[[nn.Module], nn.Module]) -> None:
    def build() -> nn.Module:
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Embedding(9, 4, padding_idx=1), MODELS["rotary"](), Twins()
        )
        nn.init.trunc_normal_(module[0].get_parameter("weight"), std=0.02, a=-0.02, b=0.02)
        return module

    direct, deferred = convert(patched(build)), convert(seeded(lambda: deferred_init(build)))
    assert all(t.is_meta for t in tensors(deferred).values())
    assert not differences(direct, materialize_module(deferred))


def test_a_large_fill_rounded_in_parts_equals_the_whole_rounded() -> None:
    def build() -> nn.Module:
        return nn.Linear(1000, 1001)

    direct, deferred = patched(build).half(), seeded(lambda: deferred_init(build)).half()
    assert not differences(direct, materialize_module(deferred))


def test_dtype_casts_parameters_and_persistent_buffers_alone() -> None:
    module = deferred_init(lambda: nn.Sequential(nn.BatchNorm1d(3), MODELS["rotary"]()))
    materialize_module(module, dtype=torch.bfloat16)
    assert module[0].weight.dtype == module[0].running_mean.dtype == torch.bfloat16
    assert module[0].num_batches_tracked.dtype == torch.int64
    assert module[1].get_buffer("b").dtype == torch.float32


def test_a_filter_chooses_by_name_and_the_rest_may_follow() -> None:
    module = deferred_init(Twins, key=KEY)
    materialize_module(module, filter=lambda name: name.startswith("online"))
    assert [name for name, t in tensors(module).items() if not t.is_meta] == ["online.weight", "online.bias"]
    materialize_module(module.target)
    assert torch.equal(module.target.weight, module.online.weight)
    assert not differences(materialize_module(module), materialize_module(deferred_init(Twins, key=KEY)))


def test_parameters_stay_the_same_objects_with_hooks_and_attributes() -> None:
    module: Any = deferred_init(nn.LSTM, 4, 3)
    weight: Any = module.weight_ih_l0
    calls: list[str] = []
    handle = weight.register_hook(lambda _: calls.append("grad"))
    weight.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))
    weight.note, reference = "kept", weakref.ref(weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.bias_ih_l0.requires_grad_(False)
    materialize_module(module)
    assert module.weight_ih_l0 is weight is reference()
    assert weight.note == "kept"
    assert not module.bias_ih_l0.requires_grad
    before = weight.detach().clone()
    module(torch.ones(2, 4))[0].sum().backward()
    assert calls == ["grad", "accumulated"]
    optimizer.step()
    assert not torch.equal(weight, before)
    handle.remove()
    module(torch.ones(2, 4))[0].sum().backward()
    assert calls == ["grad", "accumulated", "accumulated"]


def test_a_copy_of_a_deferred_module_has_its_plan() -> None:
    module = deferred_init(Twins, key=KEY)
    twin = copy.deepcopy(module)
    assert InitPlan.of(twin) == InitPlan.of(module)
    assert twin.online.weight is not module.online.weight
    assert not differences(materialize_module(twin.half()), materialize_module(module).half())
    again = pickle.loads(pickle.dumps(InitPlan.of(module)))
    assert again == InitPlan.of(module)


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("stored", [lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded])
def test_a_deferred_module_that_was_stored_gets_its_values(stored: Callable[[nn.Module], nn.Module]) -> None:
    def deferred() -> nn.Module:
        def build() -> nn.Module:
            first = nn.Linear(3, 4)
            return nn.Sequential(first, nn.BatchNorm1d(4), copy.deepcopy(first))

        return deferred_init(build, key=KEY)

    assert not differences(materialize_module(stored(deferred())), materialize_module(deferred()))
    assert not differences(
        materialize_module(stored(deferred()).half()), materialize_module(deferred()).half()
    )
    # After unpickling, a conversion records the state again, and a change is noticed.
    changed = stored(deferred()).half()
    nn.init.zeros_(changed.get_parameter("0.weight"))
    with pytest.raises(ValueError, match="written or given another storage since"):
        materialize_module(changed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch._dynamo warns when it is imported
def test_a_part_of_a_deferred_module_has_its_part_of_the_plan() -> None:
    module = deferred_init(Twins, key=KEY)
    plan = InitPlan.of(module.target)
    assert [entry.name for entry in plan] == ["weight", "bias"]
    layer = plan.apply(nn.Linear(4, 3))
    materialize_module(module)
    assert not differences(layer, module.target)
    assert InitPlan.of(module.target) == plan
    assert InitPlan.of(torch.compile(module)) == InitPlan.of(module)  # type: ignore[arg-type]


def test_to_empty_and_apply_give_the_same_module() -> None:
    module = deferred_init(Twins, key=KEY)
    plan = InitPlan.of(module)
    module.to_empty(device="cpu")
    assert not differences(plan.apply(module), materialize_module(deferred_init(Twins, key=KEY)))


def test_a_bfloat16_module_gets_the_plans_values_rounded() -> None:
    plan = InitPlan.of(deferred_init(nn.Linear, 40, 30, key=KEY))
    exact, rounded = nn.Linear(40, 30), nn.Linear(40, 30).bfloat16()
    plan.apply(exact), plan.apply(rounded)
    assert torch.equal(exact.weight.bfloat16(), rounded.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.init.zeros_(m.weight),
        lambda m: m.apply(lambda child: nn.init.ones_(child.bias)),
        lambda m: setattr(m.weight, "data", m.weight.data.half()),
    ],
)
def test_a_change_between_recording_and_materialising_is_no_silent_loss(change: Callable[[Any], Any]) -> None:
    module = deferred_init(nn.Linear, 3, 2)
    change(module)
    with pytest.raises(ValueError, match="written or given another storage since"):
        materialize_module(module)


def test_a_parameter_of_the_same_values_made_later_has_no_plan() -> None:
    module: Any = deferred_init(Twins, key=KEY)
    module.target.weight = nn.Parameter(module.online.weight.data.clone() * 2)
    with pytest.raises(ValueError, match=r"got target\.weight on meta without a plan"):
        materialize_module(module)


def test_layers_that_are_copied_and_exchanged_keep_their_values() -> None:
    def build() -> Any:
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))

    def surgery(model: Any) -> Any:
        model.insert(1, copy.deepcopy(model[0]))
        model[0], model[2] = model[2], model[0]
        return copy.deepcopy(model)

    direct, deferred = surgery(patched(build)), surgery(seeded(lambda: deferred_init(build)))
    materialize_module(deferred)
    assert not differences(direct, deferred)
    with torch.no_grad():
        deferred[1].weight.zero_()
    assert deferred[2].weight.all()


@pytest.mark.parametrize(
    "flag", ["set_overwrite_module_params_on_conversion", "set_swap_module_params_on_conversion"]
)
def test_conversions_are_kept_whichever_way_torch_makes_them(flag: str) -> None:
    getattr(torch.__future__, flag)(True)
    try:
        direct = patched(Twins).half().float()
        deferred = seeded(lambda: deferred_init(Twins)).half().float()
    finally:
        getattr(torch.__future__, flag)(False)
    assert not differences(direct, materialize_module(deferred))


def test_the_default_dtype_of_the_recording_counts() -> None:
    def build() -> nn.Module:
        module = nn.Linear(3, 4)
        module.register_buffer("a", torch.ones(3) / 3)
        module.register_buffer("b", 1 / torch.arange(1, 5))
        module.register_buffer("c", torch.linspace(0, 1, 3).sqrt())
        return module

    torch.set_default_dtype(torch.bfloat16)
    try:
        direct, deferred = patched(build), seeded(lambda: deferred_init(build))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not differences(direct, materialize_module(deferred))


def test_a_tensor_that_the_code_put_on_meta_stays_there() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))

    direct, deferred = patched(build), seeded(lambda: deferred_init(build))
    materialize_module(deferred)
    assert not [line for line in differences(direct, deferred) if not line.startswith("0.")]
    assert deferred.get_parameter("0.weight").is_meta


@pytest.mark.parametrize("key", [None, KEY])
def test_a_default_device_of_meta_around_the_recording_is_ignored(key: Key | None) -> None:
    expected = seeded(lambda: deferred_init(Twins, key=key))
    with torch.device("meta"):
        module = seeded(lambda: deferred_init(Twins, key=key))
    torch.set_default_device("meta")
    try:
        other = seeded(lambda: deferred_init(Twins, key=key))
    finally:
        torch.set_default_device(None)
    assert InitPlan.of(module) == InitPlan.of(other) == InitPlan.of(expected)
    assert all(tensor.is_meta for tensor in tensors(module).values())
    assert not differences(materialize_module(module), materialize_module(expected))


@pytest.mark.parametrize("context", [True, False])
def test_meta_is_no_device_to_materialise_on_and_the_plan_stays(context: bool) -> None:
    module = deferred_init(Twins, key=KEY)
    message = r"materialize_module: expected a device that holds data, got meta\. Pass device=, or leave"
    with torch.device("meta") if context else torch.no_grad():
        with pytest.raises(ValueError, match=message):
            materialize_module(module, device=None if context else "meta")
        if context:
            with pytest.raises(ValueError, match=r"materialize_tensor: expected a device that holds data"):
                materialize_tensor(module.online.weight)
            materialize_module(module.target, device="cpu")
    assert not differences(materialize_module(module), materialize_module(deferred_init(Twins, key=KEY)))


def test_a_parameter_made_of_numbers_is_filled_by_its_name() -> None:
    def build() -> nn.Module:
        layer = nn.ParameterDict({"w": nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))})
        nn.init.normal_(layer["w"])
        return layer

    module = materialize_module(deferred_init(build, key=KEY))
    assert torch.equal(module.get_parameter("w"), init.normal_(torch.empty(2, 2), generator=KEY.fold_in("w")))


def test_an_array_that_numpy_gets_is_read_only() -> None:
    def build() -> nn.Module:
        table = torch.zeros(3)
        table.numpy()[1] = 5
        return nn.Linear(1, 1)

    with pytest.raises(ValueError, match="read-only"):
        deferred_init(build)


@pytest.mark.filterwarnings("ignore")  # torch.distributed warns when it is imported
def test_a_module_on_a_fake_mesh_gets_its_shards() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    try:
        mesh = init_device_mesh("cpu", (3,))

        def build() -> nn.Sequential:
            return nn.Sequential(nn.Linear(4, 7), nn.Embedding(8, 3, padding_idx=4), MODELS["arithmetic"]())

        whole = materialize_module(deferred_init(build, key=KEY))
        module = deferred_init(build, key=KEY)
        for layer in module:
            fully_shard(layer, mesh=mesh)
        parameters = list(module.parameters())
        materialize_module(module)
        applied = build()
        for layer in applied:
            fully_shard(layer, mesh=mesh)
        InitPlan.of(module).apply(applied)
        for name, expected in whole.named_parameters():
            part = expected.chunk(3)[1]
            for sharded in (module, applied):
                local = sharded.get_parameter(name).to_local()  # type: ignore[attr-defined]
                assert torch.equal(local, part), name
        assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    finally:
        dist.destroy_process_group()


# --- refusals --------------------------------------------------------------------------------


def reads_a_random_value() -> nn.Module:
    layer = nn.Linear(3, 3)
    if layer.weight.sum().item() > 0:
        layer.bias.data.zero_()
    return layer


def dummy_forward() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    norm(torch.ones(4, 3) * torch.arange(3.0))
    return norm


def autocast(module: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.register_buffer("b", torch.ones(3, 3) @ torch.full((3, 3), 0.3))


OUTSIDE = torch.empty(3, device="meta")
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "item": (reads_a_random_value, "a value read back, which depends on random values,"),
    "bool": (holding(lambda _: bool(torch.randn(3).sum() > 0)), "a value read back"),
    "numpy": (holding(lambda _: torch.randn(3).numpy()), "a value read back"),
    "tolist": (holding(lambda _: torch.randn(3).tolist()), "a value read back"),
    "nonzero": (
        holding(parameter_from(lambda: torch.randn(3).nonzero())),
        "torch.nonzero, whose result depends on values",
    ),
    "large": (
        holding(parameter_from(lambda: torch.empty(2000, 2000).exponential_())),
        "torch.exponential_, random values",
    ),
    "larger": (
        holding(buffer(lambda: torch.zeros(2).resize_(2, 2))),
        "a resize that enlarges a tensor with values",
    ),
    "batch norm": (dummy_forward, "torch.native_batch_norm in training"),
    "autocast": (holding(autocast), "under autocast"),
    "another operator": (holding(lambda _: torch.ops.prims.mul(torch.ones(3), torch.ones(3))), "prims.mul"),
    "from meta": (holding(buffer(lambda: torch.ones(3) * OUTSIDE)), "that the code itself put on meta"),
    "unknown": (holding(parameter_from(lambda: torch.fft.fft(torch.randn(4)).real)), "torch._fft"),
    "random of random": (holding(parameter_from(lambda: torch.bernoulli(torch.rand(4)))), "torch.bernoulli"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_is_one_line_that_names_the_line_of_the_code(name: str) -> None:
    build, what = REFUSED[name]
    before = nn.init.normal_.__code__
    with pytest.raises(RuntimeError) as refused:
        deferred_init(build)
    message = str(refused.value)
    assert "\n" not in message
    assert what in message
    assert f"{__file__}:" in message or name == "from meta"
    assert "Build the model on a real device under paraminit_ext.patch()." in message
    assert nn.init.normal_.__code__ is before
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: deferred_init(nn.Linear, 1, 1, key=THREE),
            TypeError,
            "expected a paraminit_ext.Key or None for key",
        ),
        (
            lambda: deferred_init(lambda: THREE),
            TypeError,
            "expected a function that returns a torch.nn.Module",
        ),
        (
            lambda: torch.autocast("cpu", dtype=torch.bfloat16)(deferred_init)(nn.Linear, 1, 1),
            RuntimeError,
            "paraminit_ext.deferred_init: expected no autocast, got autocast on cpu. Enter torch.autocast",
        ),
        (lambda: materialize_module(THREE), TypeError, "expected a torch.nn.Module"),
        (lambda: materialize_tensor(THREE), TypeError, "expected a torch.Tensor"),
        (
            lambda: materialize_module(nn.Linear(1, 1, device="meta")),
            ValueError,
            "got weight on meta without a plan",
        ),
        (lambda: materialize_tensor(torch.empty(1, device="meta")), ValueError, "on meta without a plan"),
        (
            lambda: materialize_module(deferred_init(nn.Linear, 1, 1), dtype=torch.int32),
            TypeError,
            "a floating-point dtype",
        ),
        (lambda: InitPlan.of(nn.Linear(1, 1)), ValueError, "a Linear without a plan"),
        (lambda: InitPlan.of(THREE), TypeError, "expected a torch.nn.Module"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        call()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: nn.Linear(3, 5), r"expected shape \(4, 3\) for weight, got \(5, 3\)"),
        (lambda: nn.Bilinear(3, 3, 4), r"expected shape \(4, 3\) for weight"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), r"expected the names of the plan, got 0\.weight"),
        (
            lambda: nn.Linear(3, 4, device="meta"),
            r"expected weight on a device that holds data, got it on meta",
        ),
        (
            lambda: nn.Linear(3, 4, dtype=torch.complex64),
            r"expected torch\.float32 for weight, got torch\.complex64",
        ),
    ],
)
def test_a_module_that_does_not_fit_is_refused_and_left(
    target: Callable[[], nn.Module], message: str
) -> None:
    plan, module = InitPlan.of(deferred_init(nn.Linear, 3, 4, key=KEY)), target()
    before = copy.deepcopy(module)
    with pytest.raises(ValueError, match=message):
        plan.apply(module)
    if not module.get_parameter(next(iter(dict(module.named_parameters())))).is_meta:
        assert not differences(before, module)
