"""Steps run on a piece of a tensor give the values of that piece of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paraminit_ext import InitPlan, Key, deferred_init
from paraminit_ext.models.pieces import Pieces, can_run_in_pieces
from paraminit_ext.models.plan import Entry
from paraminit_ext.models.write import make

KEY = Key(2024)


def recorded(shape: tuple[int, ...], fill: Callable[[Tensor], object]) -> tuple[InitPlan, Entry]:
    """Return the plan and the entry of a parameter of this shape that ``fill`` fills."""

    def build() -> nn.Module:
        module = nn.Module()
        module.w = nn.Parameter(torch.empty(shape))
        with torch.no_grad():
            fill(module.w)
        return module

    plan = InitPlan.of(deferred_init(build, key=KEY))
    return plan, plan.entries["w"]


def views(tensor: Tensor, data: st.DataObject) -> Tensor:
    """Draw a view of the tensor by slices, indices, transpositions and dimensions of size one."""
    for _ in range(data.draw(st.integers(0, 3))):
        if tensor.dim() == 0:
            break
        dim = data.draw(st.integers(0, tensor.dim() - 1))
        size = tensor.shape[dim]
        how = data.draw(st.sampled_from(["slice", "index", "transpose", "unsqueeze"]))
        if how == "slice":
            begin = data.draw(st.integers(0, size))
            tensor = tensor.narrow(dim, begin, data.draw(st.integers(0, size - begin)))
        elif how == "index" and size > 0:
            tensor = tensor.select(dim, data.draw(st.integers(0, size - 1)))
        elif how == "transpose":
            tensor = tensor.transpose(dim, data.draw(st.integers(0, tensor.dim() - 1)))
        else:
            tensor = tensor.unsqueeze(dim)
    return tensor


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_piece_of_any_views_filled_is_that_piece_of_the_whole(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))

    def fill(w: Tensor) -> None:
        nn.init.constant_(w, 7.0)
        for _ in range(data.draw(st.integers(1, 4))):
            view = views(w, data)
            how = data.draw(st.sampled_from(["normal", "uniform", "zero", "fill", "kaiming"]))
            if how == "normal":
                nn.init.normal_(view, std=0.5)
            elif how == "uniform":
                nn.init.uniform_(view, -1.0, 2.0)
            elif how == "zero":
                view.zero_()
            elif how == "fill":
                view.fill_(3.0)
            elif view.dim() > 1 and view.numel():
                nn.init.kaiming_uniform_(view)

    plan, entry = recorded(shape, fill)
    assert can_run_in_pieces(entry)
    whole = make(plan, entry, "cpu", None)
    start = [data.draw(st.integers(0, size)) for size in shape]
    sizes = [data.draw(st.integers(0, size - at)) for size, at in zip(shape, start, strict=True)]
    piece = torch.full(sizes, float("nan"))
    Pieces(entry, plan.key).fill(piece, start)
    expected = whole[tuple(slice(at, at + size) for at, size in zip(start, sizes, strict=True))]
    assert torch.equal(piece, expected)


def test_a_range_that_ends_within_a_row_is_overwritten_in_pieces() -> None:
    def fill(w: Tensor) -> None:
        nn.init.normal_(w)
        w.view(-1)[5:19].zero_()

    plan, entry = recorded((4, 7), fill)
    assert can_run_in_pieces(entry)
    whole = make(plan, entry, "cpu", None)
    assert whole.count_nonzero() == 28 - 14
    for start, sizes in (((0, 0), (4, 7)), ((0, 4), (3, 2)), ((2, 0), (1, 6)), ((3, 0), (1, 7))):
        piece = torch.full(sizes, float("nan"))
        Pieces(entry, plan.key).fill(piece, start)
        assert torch.equal(piece, whole[start[0] : start[0] + sizes[0], start[1] : start[1] + sizes[1]])


@pytest.mark.parametrize(
    "fill",
    [
        lambda w: nn.init.orthogonal_(w),
        lambda w: nn.init.normal_(w).mul_(2.0),
        lambda w: nn.init.normal_(w.view(-1)[3:11]),
        lambda w: w.copy_(torch.arange(28.0).view(4, 7)),
        lambda w: nn.init.normal_(w[::2]),
    ],
    ids=["a matrix", "arithmetic", "a range across rows", "a copy", "every second row"],
)
def test_steps_that_depend_on_more_than_a_piece_are_not_run_in_pieces(
    fill: Callable[[Tensor], object],
) -> None:
    _, entry = recorded((4, 7), fill)
    assert not can_run_in_pieces(entry)
