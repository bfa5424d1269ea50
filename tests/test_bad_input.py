"""Refused calls: the exception, a message of one line with a remedy, and nothing written or drawn."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fills import RANDOM, every_random, same, shape_for
from paraminit_ext import Key, fill_many, init, shard

NAN, INF = math.nan, math.inf


def refused(
    name: str,
    tensor: Any,
    *arguments: Any,
    error: type[Exception] | tuple[type[Exception], ...],
    **keywords: Any,
) -> str:
    """Make a call that must be refused and return its message.

    The message is one line of the form op, expected, got. The default generator does not advance.
    """
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        getattr(init, name)(tensor, *arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"paraminit_ext.{name}: expected "), message
    assert ", got " in message
    assert torch.equal(torch.get_rng_state(), state), "a refused call advanced the generator"
    return message


@every_random
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_a_dtype_without_fills_is_refused(name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(4, 6).to(dtype)
    message = refused(name, tensor, *arguments, error=NotImplementedError)
    assert str(dtype) in message
    assert not tensor.to(torch.float32).any()


def test_a_message_shows_a_refused_number_in_full() -> None:
    half = torch.zeros(4, dtype=torch.float16)
    assert ", got a=1.0000001 > b=1." in refused("uniform_", half, 1.0000001, 1.0, error=RuntimeError)
    assert ", got a=0, b=65504.01." in refused("uniform_", half, 0.0, 65504.01, error=RuntimeError)
    for dtype, value in ((torch.float16, 3.5e38), (torch.float64, math.inf)):
        tensor = torch.zeros(4, dtype=dtype)
        holds = "float64" if dtype is torch.float64 else "float32"
        message = refused("normal_", tensor, value, error=RuntimeError)
        assert f"expected a finite mean that {holds} can hold, got mean={value:g}." in message
        message = refused("trunc_normal_", tensor, 0.0, value, error=ValueError)
        assert f"expected a finite std > 0 that {holds} can hold, got std={value:g}." in message


@pytest.mark.parametrize("name", ["trunc_normal_", "orthogonal_"])
def test_complex_is_refused_where_stock_refuses_it(name: str) -> None:
    tensor = torch.zeros(4, 6, dtype=torch.complex64)
    refused(name, tensor, error=NotImplementedError)
    assert not tensor.any()


@every_random
def test_a_sparse_layout_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    tensor = torch.eye(4, 6).to_sparse()
    refused(name, tensor, *arguments, error=NotImplementedError)
    assert torch.equal(tensor.to_dense(), torch.eye(4, 6))


@every_random
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantised_tensor_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    tensor = torch.quantize_per_tensor(torch.ones(4, 6), 0.1, 0, torch.qint8)
    refused(name, tensor, *arguments, error=NotImplementedError)
    assert torch.equal(tensor.dequantize(), torch.ones(4, 6))


@every_random
def test_a_tensor_that_overlaps_itself_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    base = torch.zeros(1, 6)
    refused(name, base.expand(4, 6), *arguments, error=RuntimeError)
    assert not base.any()


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_"])
def test_a_sliding_window_is_refused(name: str) -> None:
    base = torch.zeros(9)
    refused(name, base.unfold(0, 4, 1), error=RuntimeError)
    assert not base.any()


@every_random
@pytest.mark.parametrize("value", [[1.0], 3.0, None, "w"])
def test_what_is_no_tensor_is_refused(name: str, arguments: tuple[Any, ...], value: object) -> None:
    refused(name, value, *arguments, error=TypeError)


@every_random
@pytest.mark.parametrize("generator", [7, "cpu", torch.zeros(2)])
def test_what_is_no_generator_is_refused(name: str, arguments: tuple[Any, ...], generator: object) -> None:
    tensor = torch.zeros(4, 6)
    refused(name, tensor, *arguments, error=TypeError, generator=generator)
    assert not tensor.any()


@every_random
def test_a_generator_of_another_kind_of_device_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    tensor = torch.zeros(4, 6)
    refused(name, tensor, *arguments, error=RuntimeError, generator=Elsewhere())
    assert not tensor.any()


@every_random
def test_an_inference_tensor_is_refused_outside_inference_mode(name: str, arguments: tuple[Any, ...]) -> None:
    with torch.inference_mode():
        tensor = torch.zeros(4, 6)
    refused(name, tensor, *arguments, error=RuntimeError)
    assert not tensor.any()


@every_random
def test_a_parameter_that_zero_3_has_partitioned_away_is_refused(
    name: str, arguments: tuple[Any, ...]
) -> None:
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_id = 3  # type: ignore[attr-defined]
    assert "GatheredParameters" in refused(name, parameter, *arguments, error=RuntimeError)


def fill_one(name: str, tensor: torch.Tensor, keywords: dict[str, Any]) -> object:
    return getattr(init, name)(tensor, **keywords)


def fill_in_a_list(name: str, tensor: torch.Tensor, keywords: dict[str, Any]) -> object:
    return fill_many([(tensor, name, keywords, Key(1))])


NUMBERS = ("a", "b", "mean", "std", "gain", "scale", "sparsity")
EXTREMES = (-1.0, -1e300, -INF, NAN, INF, 1e300, 1e39, 1e10, 1e-300, 0.0, "x", [1.0], 1j)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
@pytest.mark.parametrize(
    ("call", "prefix"),
    [(fill_one, ""), (fill_in_a_list, "paraminit_ext.fill_many: entry 0 ({}): ")],
    ids=["call", "fill_many"],
)
@pytest.mark.filterwarnings("ignore:mean is more than 2 std from")
def test_a_bad_number_is_refused_in_the_name_of_the_function_and_the_argument_that_were_passed(
    dtype: torch.dtype, distribution: str, call: Callable[..., object], prefix: str
) -> None:
    tried = refusals = 0
    for name in (*RANDOM, "delta_orthogonal_"):
        function = getattr(init, name)
        for argument in NUMBERS:
            if argument not in inspect.signature(function).parameters:
                continue
            for value in EXTREMES:
                tried += 1
                keywords = {argument: value}
                if name == "sparse_":
                    keywords.setdefault("sparsity", 0.5)
                if name == "variance_scaling_":
                    keywords["distribution"] = distribution
                tensor = torch.zeros(shape_for(name), dtype=dtype)
                try:
                    call(name, tensor, keywords)
                except (RuntimeError, ValueError, TypeError, OverflowError) as error:
                    refusals += 1
                    message = str(error)
                    start = f"{prefix.format(name)}paraminit_ext.{name}: expected "
                    assert message.startswith(start), message
                    assert re.search(rf"\b{argument}\b", message), message
                    assert not tensor.any()
                else:
                    # In 16 bits, a value beyond the largest finite one is infinite, as everywhere in torch.
                    assert not tensor.isnan().any(), (name, keywords)
    assert tried > refusals > tried // 2


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("uniform_", (1.0, 0.0), RuntimeError),
        ("uniform_", (0.0, NAN), RuntimeError),
        ("uniform_", (NAN, 1.0), RuntimeError),
        ("uniform_", (-INF, 1.0), RuntimeError),
        ("uniform_", (0.0, INF), RuntimeError),
        ("uniform_", (0.0, 1e39), RuntimeError),
        ("uniform_", (-3e38, 3e38), RuntimeError),
        ("normal_", (0.0, -1.0), RuntimeError),
        ("normal_", (0.0, NAN), RuntimeError),
        ("normal_", (0.0, INF), RuntimeError),
        ("normal_", (NAN, 1.0), RuntimeError),
        ("normal_", (INF, 1.0), RuntimeError),
        ("normal_", (1e39, 1.0), RuntimeError),
        ("trunc_normal_", (0.0, 1.0, 2.0, -2.0), ValueError),
        ("trunc_normal_", (0.0, 0.0, -1.0, 1.0), ValueError),
        ("trunc_normal_", (0.0, -1.0), ValueError),
        ("trunc_normal_", (0.0, NAN), ValueError),
        ("trunc_normal_", (0.0, INF), ValueError),
        ("trunc_normal_", (NAN, 1.0), ValueError),
        ("trunc_normal_", (INF, 1.0), ValueError),
        ("trunc_normal_", (0.0, 1.0, NAN, 2.0), ValueError),
        ("trunc_normal_", (0.0, 1.0, -2.0, NAN), ValueError),
        ("trunc_normal_", (0.0, 1.0, INF, INF), ValueError),
        ("trunc_normal_", (0.0, 1.0, -INF, -INF), ValueError),
        ("trunc_normal_", (0.0, 1.0, 38.0, 39.0), ValueError),
        ("trunc_normal_", (0.0, 1.0, -INF, -37.5), ValueError),
        ("trunc_normal_", (0.0, 1e-50, -1.0, 1.0), ValueError),
        ("xavier_normal_", (-1.0,), RuntimeError),
        ("xavier_uniform_", (NAN,), RuntimeError),
        ("kaiming_normal_", (NAN,), (ValueError, RuntimeError)),
        ("kaiming_uniform_", (0, "sideways"), ValueError),
        ("orthogonal_", (NAN,), ValueError),
        ("orthogonal_", (INF,), ValueError),
        ("sparse_", (1.5,), ValueError),
        ("sparse_", (-0.5,), ValueError),
        ("sparse_", (NAN,), ValueError),
        ("sparse_", (0.5, -1.0), RuntimeError),
        ("uniform_", ("0", 1.0), TypeError),
        ("normal_", (0.0, None), TypeError),
    ],
)
@pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")
def test_parameters_out_of_range_are_refused(
    name: str, arguments: tuple[Any, ...], error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    tensor = torch.zeros(4, 6)
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        getattr(init, name)(tensor, *arguments)
    message = str(caught.value)
    assert message.startswith("paraminit_ext.")
    assert ": expected " in message
    assert ", got " in message
    assert "\n" not in message
    assert torch.equal(torch.get_rng_state(), state)
    assert not tensor.any()


def test_a_bound_beyond_float16_is_refused_for_float16_alone() -> None:
    assert init.uniform_(torch.empty(9), 0.0, 1e6).max() > 65504
    half = torch.zeros(9, dtype=torch.float16)
    refused("uniform_", half, 0.0, 1e6, error=RuntimeError)
    assert not half.any()


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("xavier_uniform_", (), (3,)),
        ("xavier_normal_", (), ()),
        ("kaiming_uniform_", (), (3,)),
        ("kaiming_normal_", (), (3,)),
        ("orthogonal_", (), (3,)),
        ("sparse_", (0.5,), (3,)),
        ("sparse_", (0.5,), (2, 2, 2)),
        ("eye_", (), (3,)),
        ("eye_", (), (2, 2, 2)),
        ("dirac_", (), (3, 3)),
        ("dirac_", (), (2, 2, 2, 2, 2, 2)),
        ("dirac_", (3,), (4, 2, 3)),
        ("dirac_", (0,), (4, 2, 3)),
        ("dirac_", (-2,), (4, 2, 3)),
    ],
)
def test_a_shape_that_the_function_has_no_meaning_for_is_refused(
    name: str, arguments: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    tensor = torch.full(shape, 7.0)
    refused(name, tensor, *arguments, error=ValueError)
    assert (tensor == 7.0).all()


@pytest.mark.parametrize(
    ("whole", "start"),
    [
        ((4,), (0,)),
        ((4, 6, 1), (0, 0, 0)),
        ((4, 6), (0,)),
        ((3, 6), (0, 0)),
        ((8, 6), (5, 0)),
        ((8, 6), (-1, 0)),
        ((2**40, 2**40), (0, 0)),
    ],
)
def test_a_shard_outside_its_whole_or_of_another_rank_is_refused(
    whole: tuple[int, ...], start: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"^paraminit_ext\.shard: expected .*, got ") as caught:
        shard(torch.zeros(4, 6), whole, start)
    assert "\n" not in str(caught.value)


def test_a_shard_of_a_value_that_is_no_tensor_or_with_non_integers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^paraminit_ext\.shard: expected "):
        shard([1.0], (1,), (0,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^paraminit_ext\.shard: expected "):
        shard(torch.zeros(2), (2.5,), (0,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: Key(-1), ValueError),
        (lambda: Key(2**64), ValueError),
        (lambda: Key(0, 2**64), ValueError),
        (lambda: Key(True), TypeError),
        (lambda: Key(1.0), TypeError),  # type: ignore[arg-type]
        (lambda: Key(0).fold_in(-1), ValueError),
        (lambda: Key(0).fold_in(2**64), ValueError),
        (lambda: Key(0).fold_in(1.5), TypeError),  # type: ignore[arg-type]
        (lambda: Key(0).split(-1), ValueError),
        (lambda: Key.from_tensor(torch.zeros(2)), TypeError),
        (lambda: Key.from_tensor(Key(1).to_tensor().repeat(2)), ValueError),
    ],
)
def test_a_key_of_wrong_parts_is_refused(build: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^paraminit_ext\.Key[.\w]*: expected .*, got "):
        build()


def test_parameters_are_checked_even_under_a_mode_that_swallows_operators() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Swallow(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return None if func.namespace == "paraminit_ext" else func(*args, **(kwargs or {}))

    mode: Any = Swallow
    with mode():
        refused("normal_", torch.zeros(4), std=-0.125, error=RuntimeError)
    refused("normal_", torch.zeros(4), std=-0.125, error=RuntimeError)


# ----------------------------------------------------------------------------------------
# Storage that was freed or is too short
# ----------------------------------------------------------------------------------------

ALL_FUNCTIONS = {
    **RANDOM,
    "delta_orthogonal_": (),
    "constant_": (0.5,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "dirac_": (),
}


@pytest.mark.parametrize(("name", "arguments"), ALL_FUNCTIONS.items(), ids=ALL_FUNCTIONS.keys())
def test_a_tensor_whose_storage_was_freed_or_is_too_short_is_refused_in_one_line(
    name: str, arguments: tuple[Any, ...]
) -> None:
    shape = (16, 8, 3) if name in ("dirac_", "delta_orthogonal_") else (64, 64)
    function = getattr(init, name)
    whole = torch.zeros(shape)
    for tensor, size in (
        (whole, 0),
        (torch.zeros(shape)[4:], 64),
        (torch.zeros(shape).transpose(-1, -2)[3:], 100),
    ):
        tensor.untyped_storage().resize_(size)
        state = torch.get_rng_state()
        for target in (tensor, torch.nn.Parameter(tensor), shard(tensor, tensor.shape, (0,) * tensor.dim())):
            with pytest.raises(
                RuntimeError, match=f"^paraminit_ext.{name}: expected storage for every"
            ) as caught:
                function(target, *arguments)
            assert "\n" not in str(caught.value)
            assert f"in {size} bytes" in str(caught.value)
        first = torch.zeros(5)
        by_name = dict(zip(list(inspect.signature(function).parameters)[1:], arguments, strict=False))
        with pytest.raises(RuntimeError, match="entry 1 .*expected storage for every element"):
            fill_many([(first, "normal_"), (tensor, name, by_name)])
        assert not first.any()
        assert torch.equal(torch.get_rng_state(), state)
    whole.untyped_storage().resize_(whole.numel() * 4)
    function(whole, *arguments)


def test_the_operators_refuse_a_short_storage_by_themselves() -> None:
    tensor = torch.zeros(64, 64)
    tensor.untyped_storage().resize_(100)
    ops = torch.ops.paraminit_ext
    for name, parameters in (("normal_", (0.0, 1.0)), ("sparse_", (1.0, 3)), ("orthogonal_", (1.0,))):
        with pytest.raises(RuntimeError, match=f"^paraminit_ext.{name}: expected storage for every element"):
            getattr(ops, name).default(tensor, *parameters, 1, 2, (), ())


def test_a_storage_that_ends_with_the_last_element_is_enough() -> None:
    base = torch.zeros(100)
    view = base.as_strided((5, 3), (9, 2), 10)  # the index of its last element is 10 + 4 * 9 + 2 * 2 = 50
    base.untyped_storage().resize_(51 * 4)
    assert init.normal_(view).all()
    base.untyped_storage().resize_(51 * 4 - 1)
    refused("normal_", view, error=RuntimeError)


# ----------------------------------------------------------------------------------------
# Nested tensors, and tensor classes that support only torch's own operators
# ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_a_nested_tensor_is_refused_in_one_line(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=layout)
    refused("normal_", nested, error=NotImplementedError)
    for part in nested.unbind():
        assert init.normal_(part).all()


class AtenOnly(torch.Tensor):
    """A wrapper around another tensor that forwards torch's own operators and rejects all others."""

    inner: Any
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> AtenOnly:
        wrapper: AtenOnly = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != "aten":
            return NotImplemented
        plain = [arg.inner if isinstance(arg, AtenOnly) else arg for arg in args]
        out = func(*plain, **(kwargs or {}))
        if func._schema.is_mutable:
            return args[0]
        return AtenOnly(out) if isinstance(out, torch.Tensor) else out


@every_random
def test_a_class_that_supports_only_torchs_operators_is_filled_as_a_plain_tensor(
    name: str, arguments: tuple[Any, ...]
) -> None:
    function = getattr(init, name)
    wrapped = AtenOnly(torch.zeros(6, 4))
    torch.manual_seed(4)
    assert function(wrapped, *arguments) is wrapped
    torch.manual_seed(4)
    assert same(wrapped.inner, function(torch.zeros(6, 4), *arguments))
    assert same(
        function(AtenOnly(torch.zeros(6, 4)), *arguments, generator=Key(3)).inner,
        function(torch.zeros(6, 4), *arguments, generator=Key(3)),
    )
