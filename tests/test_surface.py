"""A drop-in for torch.nn.init: names, signatures, results, warnings, overrides and untouched state."""

from __future__ import annotations

import inspect
import math
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import paraminit_ext
import subprocesses
from fills import same
from paraminit_ext import Key, init

ROOT = Path(__file__).resolve().parents[1]
stock = nn.init
ALIASES = sorted(name for name in stock.__all__ if name + "_" in stock.__all__)
FUNCTIONS = sorted(set(stock.__all__) - set(ALIASES))
# Each fill function, with valid arguments for a 16 x 24 matrix (dirac_ takes another shape).
CALLS: dict[str, tuple[Any, ...]] = {
    "uniform_": (-0.1, 0.2),
    "normal_": (0.5, 0.02),
    "trunc_normal_": (0.0, 1.0, -2.0, 2.0),
    "constant_": (0.3,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "dirac_": (),
    "xavier_uniform_": (2.0,),
    "xavier_normal_": (),
    "kaiming_uniform_": (),
    "kaiming_normal_": (0.1, "fan_out"),
    "orthogonal_": (),
    "sparse_": (0.25,),
}
every_fill = pytest.mark.parametrize(("name", "arguments"), CALLS.items(), ids=CALLS.keys())


def shape_for(name: str) -> tuple[int, ...]:
    return (16, 8, 3, 3) if name == "dirac_" else (16, 24)


def function(name: str) -> Callable[..., Tensor]:
    fill: Callable[..., Tensor] = getattr(init, name)
    return fill


# --- names and signatures --------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_is_stocks(name: str) -> None:
    def shape(f: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    assert shape(getattr(init, name)) == shape(getattr(stock, name))


def test_every_name_of_stock_is_here_and_at_the_top_level() -> None:
    private = {"_calculate_fan_in_and_fan_out", "_calculate_correct_fan"}
    for name in {*stock.__all__, *private}:
        assert getattr(init, name) is getattr(paraminit_ext, name)
        assert getattr(init, name) is not getattr(stock, name)
    additions = {"delta_orthogonal_", "variance_scaling_", "lecun_normal_", "lecun_uniform_"}
    assert set(init.__all__) == {*stock.__all__, *additions}
    assert all(getattr(init, name) is getattr(paraminit_ext, name) for name in additions)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_arguments_source_and_an_example(name: str) -> None:
    doc = inspect.getdoc(getattr(init, name)) or ""
    assert "Args:" in doc
    assert ">>> " in doc
    if name in {
        "xavier_uniform_",
        "xavier_normal_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "orthogonal_",
        "sparse_",
    }:
        assert "Source:" in doc


@pytest.mark.parametrize(
    ("nonlinearity", "parameter"),
    [
        *((n, None) for n in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                              "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu")),
        ("leaky_relu", 0.2), ("leaky_relu", 1), ("leaky_relu", 0), ("relu", 7.0),
    ],
)  # fmt: skip
def test_gains_are_stocks(nonlinearity: Any, parameter: float | None) -> None:
    assert init.calculate_gain(nonlinearity, parameter) == stock.calculate_gain(nonlinearity, parameter)


@pytest.mark.parametrize("shape", [(3, 5), (4, 6, 3), (4, 6, 3, 5), (0, 5), (5, 0, 3)])
def test_fans_are_stocks(shape: tuple[int, ...]) -> None:
    tensor = torch.empty(shape)
    assert init._calculate_fan_in_and_fan_out(tensor) == stock._calculate_fan_in_and_fan_out(tensor)
    for mode in ("fan_in", "fan_out", "FAN_IN"):
        any_mode: Any = mode
        ours = init._calculate_correct_fan(tensor, any_mode)
        assert ours == stock._calculate_correct_fan(tensor, any_mode)


# --- what a call does ------------------------------------------------------------------------


@every_fill
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_fill_writes_every_element_and_returns_its_tensor(
    name: str, arguments: tuple[Any, ...], dtype: torch.dtype
) -> None:
    parameter = nn.Parameter(torch.full(shape_for(name), math.nan, dtype=dtype))
    version = parameter._version
    assert function(name)(parameter, *arguments) is parameter
    assert torch.isfinite(parameter).all()
    assert parameter._version > version
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad_fn is None


@every_fill
def test_a_view_is_filled_and_nothing_around_it(name: str, arguments: tuple[Any, ...]) -> None:
    shape = shape_for(name)
    backing = torch.full([n + 5 for n in shape], math.nan)
    view = backing[tuple(slice(2, 2 + n) for n in shape)]
    function(name)(view, *arguments)
    assert torch.isfinite(view).all()
    assert int(torch.isfinite(backing).sum()) == view.numel()


@every_fill
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_meta_tensors_and_empty_ones_are_left(name: str, arguments: tuple[Any, ...]) -> None:
    meta = torch.empty(shape_for(name), device="meta")
    assert function(name)(meta, *arguments) is meta
    empty = torch.empty((0, *shape_for(name)[1:]))
    assert function(name)(empty, *arguments) is empty


@every_fill
def test_a_default_device_changes_nothing(name: str, arguments: tuple[Any, ...]) -> None:
    # The device context is a function mode, which must not end up calling stock's function.
    torch.manual_seed(3)
    expected = function(name)(torch.empty(shape_for(name)), *arguments)
    for device in ("cpu", "meta"):
        tensor = torch.empty(shape_for(name))
        torch.manual_seed(3)
        with torch.device(device):
            assert function(name)(tensor, *arguments) is tensor
        assert same(tensor, expected)


@every_fill
@pytest.mark.parametrize("grad", [True, False])
def test_grad_mode_is_left_as_it_was(name: str, arguments: tuple[Any, ...], grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        function(name)(nn.Parameter(torch.empty(shape_for(name))), *arguments)
        assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize("value", [torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64), 1])
def test_a_number_may_be_a_tensor_of_no_dimensions_or_an_int(value: Any) -> None:
    expected = init.normal_(torch.empty(9), 0.0, float(value), generator=Key(1))
    assert same(init.normal_(torch.empty(9), 0, value, generator=Key(1)), expected)


@pytest.mark.parametrize(
    ("name", "arguments"), [c for c in CALLS.items() if c[0] not in {"orthogonal_", "sparse_"}]
)
def test_arguments_mean_what_they_mean_to_stock(name: str, arguments: tuple[Any, ...]) -> None:
    """Constants are equal. Random fills have equal means and deviations up to their standard errors."""
    shape = (256, 128, 3, 3) if name == "dirac_" else (512, 768)
    torch.manual_seed(0)
    ours, theirs = (getattr(m, name)(torch.empty(shape), *arguments).double() for m in (init, stock))
    if name in {"constant_", "ones_", "zeros_", "eye_", "dirac_"}:
        assert torch.equal(ours, theirs)
        return
    n, std = ours.numel(), theirs.std().item()
    # 6 standard errors of a difference of two means. A kurtosis of at most 3 bounds the error of a deviation.
    assert abs(ours.mean() - theirs.mean()) < 6 * std * math.sqrt(2 / n)
    assert abs(ours.std() / std - 1) < 6 / math.sqrt(n)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 4, 3), 1), ((4, 6, 3, 2), 1), ((6, 2, 3, 3, 3), 3), ((6, 4, 5), 2), ((9, 9, 1), 9)],
)
def test_dirac_is_stocks(shape: tuple[int, ...], groups: int) -> None:
    assert torch.equal(init.dirac_(torch.empty(shape), groups), stock.dirac_(torch.empty(shape), groups))


@pytest.mark.parametrize("name", ["dirac_", "eye_", "ones_", "zeros_"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.bool,
        torch.complex32,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_functions_without_random_numbers_take_every_dtype(name: str, dtype: torch.dtype) -> None:
    shape = (4, 3, 2) if name == "dirac_" else (4, 3)
    expected = getattr(stock, name)(torch.full(shape, 5.0)).to(dtype)
    filled = getattr(init, name)(torch.full(shape, 1.0).to(dtype))
    assert torch.equal(filled.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_constants_fill_the_dtypes_that_stock_fills(dtype: torch.dtype) -> None:
    for name, arguments in (("constant_", (1,)), ("ones_", ()), ("zeros_", ()), ("eye_", ())):
        ours, theirs = (getattr(m, name)(torch.empty(5, 7, dtype=dtype), *arguments) for m in (init, stock))
        assert torch.equal(ours, theirs)


# --- matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (64, 64), (96, 40), (40, 96), (12, 5, 3, 3), (5, 12, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q = init.orthogonal_(torch.empty(shape, dtype=dtype), 2.0).flatten(1).double() / 2.0
    gram = q.T @ q if q.size(0) >= q.size(1) else q @ q.T
    n = max(q.shape)
    # The stream contract allows 8 u sqrt(n); u is the unit roundoff of the dtype.
    assert (gram - torch.eye(len(gram))).abs().max() <= 8 * torch.finfo(dtype).eps / 2 * math.sqrt(n)


def test_orthogonal_is_the_product_of_its_reflectors() -> None:
    rows, columns = 7, 4
    g = init.normal_(torch.empty(rows, columns, dtype=torch.float64), generator=Key(4))
    product, signs = torch.eye(rows, dtype=torch.float64), torch.ones(columns, dtype=torch.float64)
    for k in range(columns):
        v = torch.zeros(rows, dtype=torch.float64)
        v[k:] = g[k:, k]
        sign = -1.0 if v[k] < 0 else 1.0
        v[k] += sign * v.norm()
        product = product @ (torch.eye(rows, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
        signs[k] = -sign
    got = init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), generator=Key(4))
    # Both sides round 4 reflections of vectors of length 1 in double.
    assert (got - product[:, :columns] * signs).abs().max() < 1e-14


def test_the_determinant_of_a_square_orthogonal_matrix_has_either_sign() -> None:
    negative = sum(
        bool(torch.det(init.orthogonal_(torch.empty(3, 3), generator=Key(i))) < 0) for i in range(400)
    )
    # Binomial(400, 1/2) has a deviation of 10. By chance it is 6 deviations off once in 5e8.
    assert 140 < negative < 260


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.99, 1.0])
def test_sparse_has_exactly_its_zeros_in_every_column(dtype: torch.dtype, sparsity: float) -> None:
    w = init.sparse_(torch.empty(53, 71, dtype=dtype), sparsity, generator=Key(9))
    assert (w == 0).sum(0).tolist() == [math.ceil(sparsity * 53)] * 71
    values = init.normal_(torch.empty(53, 71, dtype=dtype), 0.0, 0.01, generator=Key(9))
    assert torch.equal(w[w != 0], values[w != 0])
    assert not torch.signbit(torch.view_as_real(w) if dtype.is_complex else w)[w == 0].any()


# --- warnings --------------------------------------------------------------------------------


def warnings_of(call: Callable[[], object]) -> list[tuple[type[Warning], str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.category, w.filename) for w in caught]


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_zero_elements_warn_at_the_callers_line(name: str) -> None:
    assert warnings_of(lambda: function(name)(torch.empty(0, 3))) == [(UserWarning, __file__)]


@pytest.mark.parametrize(
    ("mean", "a", "b"), [(10.0, -2.0, 2.0), (-10.0, -2.0, 2.0), (0.0, -2.0, 2.0), (0.0, 3.0, 4.0)]
)
def test_trunc_normal_warns_where_stock_warns(mean: float, a: float, b: float) -> None:
    ours = warnings_of(lambda: init.trunc_normal_(torch.empty(8), mean, 1.0, a, b))
    theirs = warnings_of(lambda: stock.trunc_normal_(torch.empty(8), mean, 1.0, a, b))
    assert [category for category, _ in ours] == [category for category, _ in theirs]
    assert all(filename == __file__ for _, filename in ours)


@pytest.mark.parametrize("name", ALIASES)
def test_a_deprecated_name_warns_and_does_the_same(name: str) -> None:
    arguments = CALLS[name + "_"]
    torch.manual_seed(1)
    expected = function(name + "_")(torch.empty(shape_for(name + "_")), *arguments)
    got: list[Tensor] = []
    torch.manual_seed(1)
    call = lambda: got.append(getattr(init, name)(torch.empty(shape_for(name + "_")), *arguments))  # noqa: E731
    assert warnings_of(call) == [(FutureWarning, __file__)]
    assert same(got[0], expected)


# --- __torch_function__ ----------------------------------------------------------------------


class Recorder(TorchFunctionMode):
    """Record each function, and call it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@every_fill
def test_a_mode_is_handed_our_function(name: str, arguments: tuple[Any, ...]) -> None:
    tensor = torch.empty(shape_for(name))
    with Recorder() as mode:
        function(name)(tensor, *arguments)
    assert mode.seen[0] is function(name)
    assert getattr(stock, name) not in mode.seen


@every_fill
def test_a_subclass_is_handed_our_function(name: str, arguments: tuple[Any, ...]) -> None:
    class Marked(Tensor):
        seen: list[Any] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    tensor = torch.full(shape_for(name), math.nan).as_subclass(Marked)
    Marked.seen.clear()
    assert function(name)(tensor, *arguments) is tensor
    assert Marked.seen[0] is function(name)
    assert torch.isfinite(tensor.as_subclass(Tensor)).all()


@every_fill
def test_a_handler_may_answer_in_our_place(name: str, arguments: tuple[Any, ...]) -> None:
    class Answer(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return "answered"

    tensor = torch.zeros(shape_for(name))
    with Answer():
        answer = function(name)(tensor, *arguments)
    assert answer == "answered"
    assert not tensor.any()


# --- the command line, and imports -----------------------------------------------------------


def test_info_names_what_a_bug_report_needs() -> None:
    done = subprocesses.run("-m", "paraminit_ext", "info")
    assert done.returncode == 0
    for fact in (paraminit_ext.__version__, torch.__version__, paraminit_ext.cpu_capability(), "threads"):
        assert fact in done.stdout


def test_an_instruction_set_is_forced_by_the_environment_and_a_wrong_name_is_an_error() -> None:
    show = "import paraminit_ext; print(paraminit_ext.cpu_capability())"
    for name in paraminit_ext.available_cpu_capabilities():
        assert subprocesses.run("-c", show, PARAMINIT_CPU_CAPABILITY=name).stdout.strip() == name
    wrong = subprocesses.run("-c", show, PARAMINIT_CPU_CAPABILITY="abacus")
    assert wrong.returncode != 0
    assert "ImportError" in wrong.stderr
    assert ", ".join(paraminit_ext.available_cpu_capabilities()) in wrong.stderr
    with pytest.raises(ValueError, match="expected one of .*baseline.*, got 'abacus'"):
        paraminit_ext.set_cpu_capability("abacus")


# The package is imported from a checkout, or from where it was installed (make models, make sanitize).
REMEDY = (
    f"Build it: pip install --no-deps -e {ROOT}"
    if Path(paraminit_ext.__file__).parents[1] == ROOT
    else "Reinstall it: pip install --force-reinstall --no-deps paraminit_ext"
)


@pytest.mark.parametrize(
    ("planted", "got", "remedy"),
    [
        (
            "m = types.ModuleType('b'); m.build_info = lambda: {'version': '0.0.9'}",
            "expected a compiled extension of the same version, got one of 0.0.9.",
            REMEDY,
        ),
        ("m = None", "got none.", REMEDY),
        (
            "import torch; torch.__version__ = '2.10.1+cpu'",
            "expected torch 2.11 or later, got torch 2.10.1+cpu.",
            "pip install --upgrade torch",
        ),
    ],
)
def test_a_binary_that_cannot_serve_fails_with_what_is_there_and_the_remedy(
    planted: str, got: str, remedy: str
) -> None:
    fake = "sys.modules['paraminit_ext._C'] = m; " if planted.startswith("m =") else ""
    failed = subprocesses.run("-c", f"import sys, types; {planted}; {fake}import paraminit_ext")
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: paraminit_ext {paraminit_ext.__version__}: ")
    assert got in last
    assert last.endswith(remedy)


def test_an_installed_package_without_its_binary_says_how_to_reinstall_it(tmp_path: Path) -> None:
    # After an upgrade of Python, a user of a wheel has the Python sources, no binary and no checkout.
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "paraminit_ext", tmp_path / "paraminit_ext", ignore=without)
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path += [{sysconfig.get_path("purelib")!r}]
import paraminit_ext
"""
    # -S skips site, and so the hook of an editable install, which would find the binary. The copy comes
    # before the package that PYTHONPATH may name.
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: paraminit_ext {paraminit_ext.__version__}: expected a compiled ")
    assert last.endswith("Reinstall it: pip install --force-reinstall --no-deps paraminit_ext")


def test_the_module_can_replace_stock_for_a_caller_that_swaps_names() -> None:
    assert isinstance(init, ModuleType)
    assert all(callable(getattr(init, name)) for name in stock.__all__)
