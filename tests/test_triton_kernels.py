"""The Triton kernels that the benchmarks compare with ours, tested as far as possible without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks are not installed
pytest.importorskip("triton", reason="needs triton, which comes with a CUDA build of torch (make cuda-build)")

from triton import compiler
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import create_function_from_signature

from benchmarks import triton_kernels

KERNELS = (triton_kernels._uniform_kernel, triton_kernels._normal_kernel)
HOPPER = GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("kernel", KERNELS, ids=["uniform", "normal"])
def test_a_kernel_takes_its_arguments_and_compiles_for_a_gpu(kernel: Any) -> None:
    # Do what a launch does before it needs a driver: find the type of each argument, and compile.
    binder = create_function_from_signature(kernel.signature, kernel.params, compiler.make_backend(HOPPER))
    out = torch.empty(4096, dtype=torch.bfloat16)
    bound, types, _ = binder(out, out.numel(), 0, -1.0, 2.0, triton_kernels.BLOCK)
    assert list(bound) == [parameter.name for parameter in kernel.params]
    assert len(types) == len(kernel.params)
    signature = dict(zip(bound, ("*bf16", "i64", "i32", "fp32", "fp32", "constexpr"), strict=True))
    source = compiler.ASTSource(kernel, signature, {(5,): triton_kernels.BLOCK})
    made = compiler.compile(source, target=HOPPER)
    assert len(made.asm["cubin"]) > 1000
