"""`python -m paraminit_ext verify` passes here, and each of its checks fails on a planted fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import paraminit_ext
from paraminit_ext import _C, Key, draws, init, verify
from paraminit_ext.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")

# Hide the packages that a machine with only torch lacks. None in sys.modules makes an import fail.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'scipy', 'mpmath', 'rich', 'typer']))"


def test_verify_passes_with_torch_alone() -> None:
    command = f"{WITHOUT}; from paraminit_ext.__main__ import main; sys.exit(main(['verify', '--quick']))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert all(line.startswith("right ") for line in lines)
    assert f"all {len(lines)} checks are right" in last
    sets = paraminit_ext.available_cpu_capabilities()
    assert sum("golden values on" in line for line in lines) == len(sets)
    assert sum("law of" in line for line in lines) == 2 * len(verify.LAWS)


@pytest.mark.gpu
def test_verify_passes_on_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--quick", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert "golden values on CUDA" in printed
    assert "CUDA writes the CPU's bits" in printed


def test_a_device_that_is_not_there_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_C, "has_cuda", lambda: False)
    assert main(["verify", "--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "paraminit_ext verify --device cuda: expected a build with CUDA kernels, got one without. "
        "Rebuild it with FORCE_CUDA=1.\n"
    )


def test_a_wrong_golden_value_fails_the_command_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = json.loads(verify._GOLDEN.read_text())
    hashes = golden["fills"][1]["sha256"]["bfloat16"]
    hashes["64x65"] = hashes["5"]
    changed = tmp_path / "golden.json"
    changed.write_text(json.dumps(golden))
    monkeypatch.setattr(verify, "_GOLDEN", changed)
    monkeypatch.setattr(verify, "_statistics", lambda *_: iter(()))  # the change does not affect these
    assert main(["verify", "--quick"]) == 1
    printed = capsys.readouterr().out
    wrong = [line for line in printed.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == len(paraminit_ext.available_cpu_capabilities())
    assert "uniform_(1.0, 1.0078125) in bfloat16, shape 64x65" in wrong[0]
    assert "checks FAILED" in printed.splitlines()[-1]


# --- each check except the laws, on a correct build and on a fault -------------------------------

GOLDEN: dict[str, Any] = json.loads(verify._GOLDEN.read_text())
CHECKS: dict[str, Callable[[], verify.Check]] = {
    "known answers": verify._known_answers,
    "keys": lambda: verify._golden_keys(GOLDEN),
    "fills": lambda: verify._golden_fills(GOLDEN, "cpu", "golden values"),
    "instruction sets": lambda: verify._instruction_sets_agree(70_001),
    "threads": lambda: verify._threads_agree(70_001),
    "shards": lambda: verify._layouts_and_shards_agree("cpu"),
    "16 bits": lambda: verify._narrow_is_wide_rounded(70_001, "cpu"),
}


def after(fill: Callable[..., Tensor], change: Callable[[Tensor], object]) -> Callable[..., Tensor]:
    """Return a function that fills a tensor and then changes it."""

    def faulty(target: Any, *arguments: Any, **keywords: Any) -> Tensor:
        filled = fill(target, *arguments, **keywords)
        change(filled)
        return filled

    return faulty


def swap_lanes(tensor: Tensor) -> None:
    flat = tensor.view(-1)
    flat[:2] = flat[:2].flip(0).clone()


def plant(fault: str, patch: pytest.MonkeyPatch) -> None:
    philox, draw, normal = _C.philox, draws.draw, init.normal_
    if fault == "known answers":
        patch.setattr(_C, "philox", lambda c, k: (*philox(c, k)[:3], 0))
    elif fault == "keys":
        patch.setattr(draws, "draw", lambda g: draw(g)[::-1])
    elif fault == "fills":
        patch.setattr(init, "normal_", after(normal, lambda t: t.mul_(1.001)))
    elif fault == "instruction sets":
        best = paraminit_ext.available_cpu_capabilities()[0]
        patch.setattr(
            init,
            "normal_",
            after(normal, lambda t: swap_lanes(t) if paraminit_ext.cpu_capability() == best else None),
        )
    elif fault == "threads":
        patch.setattr(
            init, "normal_", after(normal, lambda t: swap_lanes(t) if torch.get_num_threads() == 1 else None)
        )
    elif fault == "shards":
        patch.setattr(init, "normal_", after(normal, lambda t: t[:1].neg_() if len(t) == 100 else None))
    else:  # rounded twice: first to the 2 bits of fraction of float8_e5m2
        patch.setattr(
            init,
            "normal_",
            after(normal, lambda t: t.copy_(t.to(torch.float8_e5m2)) if t.dtype.itemsize == 2 else None),
        )


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_is_right_here_and_wrong_under_its_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "instruction sets" and len(paraminit_ext.available_cpu_capabilities()) == 1:
        pytest.skip("needs a machine with two instruction sets, for one to differ")
    assert CHECKS[name]().right
    plant(name, monkeypatch)
    assert not CHECKS[name]().right


# --- the laws -----------------------------------------------------------------------------------

SAMPLE = 1 << 19
TESTS = 2 * sum(
    len(verify.p_values(law, fill(torch.empty(1000), Key(1)))) for law, fill in verify.LAWS.items()
)


def samples() -> Iterator[tuple[str, Tensor]]:
    for law, fill in verify.LAWS.items():
        yield law, fill(torch.empty(SAMPLE), Key(77))


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted by 1/50 of its spread": lambda x: x + 0.02 * x.std(),
    "7 bits of fraction": lambda x: x.bfloat16().float(),
    "the same counters twice": lambda x: x.view(2, -1)[0].repeat(2),
    "a heap at the upper end": lambda x: torch.where(torch.arange(len(x)) % 997 == 0, x.max(), x),
    "each value again in its neighbour": lambda x: x[::2].repeat_interleave(2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_law_is_found(fault: str) -> None:
    found = {law: min(verify.p_values(law, FAULTS[fault](x)).values()) for law, x in samples()}
    # A half that is repeated far away shows only in the counts: it doubles chi-square.
    assert all(p < verify.ALARM / TESTS for p in found.values()), found


def test_the_same_samples_without_a_fault_pass() -> None:
    found = {law: min(verify.p_values(law, x).values()) for law, x in samples()}
    assert all(p >= verify.ALARM / TESTS for p in found.values()), found


def test_a_tail_that_ends_early_is_found() -> None:
    z = init.normal_(torch.empty(SAMPLE, dtype=torch.float64), generator=Key(77))
    right = verify._tail_counts(z)
    assert min(right.values()) >= verify.ALARM / TESTS
    # Folding all values beyond 4 std back moves 1 value in 16,000.
    assert (
        verify._tail_counts(torch.where(z.abs() > 4, 8 - z.abs(), z))["values beyond 4 std"]
        < verify.ALARM / TESTS
    )


def test_a_shifted_mean_fails_its_law_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = init.normal_
    monkeypatch.setattr(init, "normal_", after(normal, lambda t: t.add_(0.01)))
    found = {check.name: check.right for check in verify._statistics(SAMPLE, "cpu")}
    assert {name for name, right in found.items() if not right} == {
        "law of normal, mean 2, std 1/2, float32",
        "law of normal, mean 2, std 1/2, float64",
    }


@pytest.mark.parametrize("degrees", [1, 2, 5, 255, 1023])
def test_the_chi_square_tail_is_scipys(degrees: int) -> None:
    for factor in (0.01, 0.5, 0.9, 0.999, 1.001, 1.1, 1.3, 2.0):
        x = degrees * factor
        assert verify.chi_square_tail(x, degrees) == pytest.approx(
            stats.chi2.sf(x, degrees), rel=1e-9, abs=1e-300
        )


@pytest.mark.parametrize(("n", "p"), [(100, 0.3), (1 << 20, 6.3e-5), (1 << 20, 5.7e-7), (1 << 22, 2.7e-3)])
def test_the_binomial_tails_are_scipys(n: int, p: float) -> None:
    mean, spread = n * p, (n * p) ** 0.5
    for off in (-6, -1, 0, 1, 2, 7):
        count = max(0, round(mean + off * spread))
        lower, upper = stats.binom.cdf(count, n, p), stats.binom.sf(count - 1, n, p)
        tail = upper if count > mean else lower
        assert verify.binomial_tails(count, n, p) == pytest.approx(min(1.0, 2.0 * tail), rel=1e-6)
