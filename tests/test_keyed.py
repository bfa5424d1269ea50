"""``keyed``: the key of a fill of a module's tensor is derived from the name of the tensor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from module_equality import differences, seeded
from paraminit_ext import Key, init, keyed, patch, shard
from paraminit_ext.models.names import named_modules, named_tensors

KEY = Key(11)


class Model(nn.Module):
    layers: Any

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.norm = nn.BatchNorm1d(8)

    def reset_parameters(self) -> None:
        module: Any
        for module in self.modules():
            if module not in (self, self.head) and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return x


def expected(name: str, shape: tuple[int, ...], key: Key = KEY) -> Tensor:
    """Return the values that ``nn.Linear`` gives to a weight of that name."""
    return init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=key.fold_in(name))


@pytest.mark.parametrize("under_patch", [True, False])
def test_a_fill_takes_the_key_of_the_name(under_patch: bool) -> None:
    model = Model()
    with patch() if under_patch else torch.no_grad(), keyed(model, KEY):
        model.layers[1].reset_parameters()
        model.layers[0].weight.data.normal_(0, 0.02)
        init.lecun_normal_(model.head.weight)
    assert torch.equal(model.layers[1].weight, expected("layers.1.weight", (8, 8)))
    bound = 1 / 8**0.5
    bias = init.uniform_(torch.empty(8), -bound, bound, generator=KEY.fold_in("layers.1.bias"))
    assert torch.equal(model.layers[1].bias, bias)
    weight = init.normal_(torch.empty(8, 8), 0, 0.02, generator=KEY.fold_in("layers.0.weight"))
    assert torch.equal(model.layers[0].weight, weight)
    # A tied tensor has the key of its first name, even if it is filled under the other one.
    tied = init.lecun_normal_(torch.empty(20, 8), generator=KEY.fold_in("table.weight"))
    assert torch.equal(model.table.weight, tied)


def test_the_order_of_fills_does_not_matter() -> None:
    forward, backward = Model(), Model()
    with keyed(forward, KEY):
        forward.reset_parameters()
    with keyed(backward, KEY):
        module: Any
        for module in reversed(list(backward.modules())[1:]):
            if module is not backward.head and hasattr(module, "reset_parameters"):
                module.reset_parameters()
    assert not differences(forward, backward)


def test_a_proper_view_takes_the_key_of_its_offset() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with keyed(attention, KEY):
        for part in attention.in_proj_weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.normal_(attention.out_proj.weight.t())
    own = KEY.fold_in("in_proj_weight")
    for index, part in enumerate(attention.in_proj_weight.chunk(3)):
        assert torch.equal(part, init.xavier_uniform_(torch.empty(8, 8), generator=own.fold_in(index * 64)))
    # A transposed view is still the whole tensor, so it has the tensor's own key.
    whole = init.normal_(torch.empty(8, 8), generator=KEY.fold_in("out_proj.weight"))
    assert torch.equal(attention.out_proj.weight.t(), whole)


def test_a_complex_parameter_is_known_by_its_real_view() -> None:
    module = nn.ParameterDict({"w": nn.Parameter(torch.empty(3, 4, dtype=torch.complex64))})
    with keyed(module, KEY), torch.no_grad():
        torch.view_as_real(module["w"]).normal_()
    assert torch.equal(
        torch.view_as_real(module["w"]), init.normal_(torch.empty(3, 4, 2), generator=KEY.fold_in("w"))
    )


def test_the_real_and_the_imaginary_part_are_parts() -> None:
    module = nn.ParameterDict({"w": nn.Parameter(torch.empty(3, 4, dtype=torch.complex64))})
    with keyed(module, KEY), torch.no_grad():
        nn.init.normal_(module["w"].real)
        nn.init.normal_(module["w"].imag)
    own = KEY.fold_in("w")
    for place, part in enumerate((module["w"].real, module["w"].imag)):
        assert torch.equal(part, init.normal_(torch.empty(3, 4), generator=own.fold_in(place)))


def test_transforms_of_torch_func_work_inside() -> None:
    layer = nn.Linear(3, 2)
    parameters: dict[str, Tensor] = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, parameters, (x.clone(),))
        noise = nn.init.normal_(result.clone()) * 0
        return (result + noise).to(torch.float64).sum()

    def gradients() -> Tensor:
        per_sample = torch.vmap(torch.func.grad(loss), (None, 0), randomness="different")
        found: Tensor = per_sample(parameters, torch.ones(4, 3))["weight"]
        return found

    with keyed(layer, KEY):
        assert torch.equal(gradients(), torch.ones(4, 2, 3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "got layout torch.sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "got a nested one"),
    ],
)
def test_a_tensor_without_a_layout_of_its_own_is_refused_by_the_fill(
    make: Callable[[], Tensor], what: str
) -> None:
    module = nn.Linear(2, 3)
    module.register_buffer("other", make())
    with keyed(module, KEY):
        # Such a buffer does not affect the other tensors.
        module.reset_parameters()
        with pytest.raises(NotImplementedError, match=rf"paraminit_ext\.normal_: expected .*{what}"):
            init.normal_(module.get_buffer("other"))
    assert torch.equal(module.weight, expected("weight", (3, 2)))


class Plain(nn.Parameter):
    """A subclass that overrides nothing."""


def test_a_parameter_subclass_that_overrides_nothing_has_the_key_of_its_name() -> None:
    module = nn.Module()
    module.w = Plain(torch.empty(4, 3))
    with keyed(module, KEY):
        nn.init.normal_(module.w)
    assert torch.equal(module.w, init.normal_(torch.empty(4, 3), generator=KEY.fold_in("w")))


def test_a_shard_of_a_parameter_is_its_part_of_the_whole() -> None:
    whole, stage = nn.Linear(4, 6), nn.Linear(4, 3)
    with keyed(whole, KEY), keyed(stage, KEY):
        init.normal_(whole.weight)
        init.normal_(shard(stage.weight, (6, 4), (3, 0)))
    assert torch.equal(stage.weight, whole.weight[3:])


def test_a_fill_of_another_tensor_goes_on_as_outside() -> None:
    model, other = nn.Linear(3, 3), torch.empty(5)
    with keyed(model, KEY):
        stocks = seeded(lambda: nn.init.normal_(other).clone())
        explicit = init.normal_(torch.empty(5), generator=Key(2))
    assert torch.equal(stocks, seeded(lambda: torch.empty(5).normal_()))
    assert torch.equal(explicit, init.normal_(torch.empty(5), generator=Key(2)))
    with patch(), keyed(model, KEY):
        ours = seeded(lambda: nn.init.normal_(other).clone())
    assert torch.equal(ours, seeded(lambda: init.normal_(torch.empty(5))))


def test_a_generator_gives_way_to_the_name_and_a_key_does_not() -> None:
    layer = nn.Linear(3, 3)
    with keyed(layer, KEY):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
        init.normal_(layer.bias, generator=Key(5))
    assert torch.equal(layer.weight, init.normal_(torch.empty(3, 3), generator=KEY.fold_in("weight")))
    assert torch.equal(layer.bias, init.normal_(torch.empty(3), generator=Key(5)))


def test_a_prefix_and_aliases_say_where_a_part_stands_in_the_whole() -> None:
    whole = Model()
    stage: Any = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)])})
    with keyed(whole, KEY):
        whole.reset_parameters()
    with keyed(stage, KEY, aliases={"layers.0": "layers.1"}):
        stage["layers"][0].reset_parameters()
    assert not differences(stage["layers"][0], whole.layers[1])
    with keyed(stage["layers"][0], KEY, prefix="layers.1", aliases={"bias": "other"}):
        stage["layers"][0].reset_parameters()
    assert torch.equal(stage["layers"][0].weight, whole.layers[1].weight)
    assert not torch.equal(stage["layers"][0].bias, whole.layers[1].bias)


def test_tensors_that_come_later_are_found() -> None:
    with torch.device("meta"):
        model = Model()
    with keyed(model, KEY):
        model.to_empty(device="cpu")
        model.reset_parameters()
    assert torch.equal(model.layers[0].weight, expected("layers.0.weight", (8, 8)))


def test_an_exception_leaves_nothing_behind() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(KeyError), keyed(layer, KEY):
        raise KeyError
    assert torch.equal(
        seeded(lambda: nn.init.normal_(layer.weight.data).clone()),
        seeded(lambda: torch.empty(3, 3).normal_()),
    )


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((3, KEY), {}, r"expected a torch\.nn\.Module for module, got int"),
        ((nn.Linear(1, 1), 3), {}, r"expected a paraminit_ext\.Key for key, got int"),
        ((nn.Linear(1, 1), KEY), {"prefix": 3}, r"expected a str for prefix, got int"),
        ((nn.Linear(1, 1), KEY), {"aliases": ["a"]}, r"expected a mapping of names, or None for aliases"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[object, ...], keywords: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        keyed(*arguments, **keywords)  # type: ignore[arg-type]


# --- names -----------------------------------------------------------------------------------


def test_names_are_torchs_own() -> None:
    model = Model()
    assert [path for path, _ in named_modules(model)] == [path for path, _ in model.named_modules()]
    names = [tensor.name for tensor in named_tensors(model) if tensor.kind == "parameter"]
    assert names == [name for name, _ in model.named_parameters(remove_duplicate=False)]


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch.distributed and torch._dynamo warn when they are imported
def test_wrappers_add_nothing_to_names_but_modules_of_their_names_do(process_group: None) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.nn.parallel import DistributedDataParallel

    plain, model = Model(), Model()
    names = [tensor.name for tensor in named_tensors(plain)]
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    model.layers[1] = torch.compile(checkpoint_wrapper(model.layers[1]))
    assert [tensor.name for tensor in named_tensors(model)] == names
    for wrapped in (DistributedDataParallel(model), nn.DataParallel(model), torch.compile(model)):
        assert [tensor.name for tensor in named_tensors(wrapped)] == names  # type: ignore[arg-type]
    # Wrappers are recognised by their type. A plain module keeps children with such names in its paths.
    own = nn.Sequential()
    own.add_module("module", nn.Linear(1, 1))
    own.add_module("_orig_mod", nn.Linear(1, 1))
    assert [path for path, _ in named_modules(own)] == ["", "module", "_orig_mod"]
    with keyed(torch.compile(model), KEY):  # type: ignore[arg-type]
        model.layers[0].reset_parameters()
    assert torch.equal(model.layers[0].weight, expected("layers.0.weight", (8, 8)))
