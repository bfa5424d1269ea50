"""Distributes the files of a checkpoint over the processes that write it: one, or the ranks of a mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from paraminit_ext.models.names import mesh_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_T = TypeVar("_T")


class Writers:
    """The processes that write one checkpoint together. All of them run the same steps.

    Args:
        tensors: the tensors of the module. If some are DTensors, the ranks of the largest mesh write.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._mesh: DeviceMesh | None = None
        self.place, self.count = 0, 1
        meshes = [tensor_mesh for tensor in tensors if (tensor_mesh := mesh_of(tensor)) is not None]
        if meshes:
            from paraminit_ext.mesh import rank_and_size

            largest: DeviceMesh = max(meshes, key=lambda mesh: mesh.size())
            ranks = rank_and_size(largest)
            if ranks is not None:
                self._mesh, (self.place, self.count) = largest, ranks

    @property
    def is_first(self) -> bool:
        """Whether this process does the work that only one process must do."""
        return self.place == 0

    def own(self, files: Sequence[_T]) -> list[_T]:
        """Return the files that this process writes. Each file belongs to exactly one process."""
        return list(files[self.place :: self.count])

    def refuse_others(self, content: bytes) -> None:
        """Raise on all processes if they are about to write different checkpoints.

        Raises:
            RuntimeError: the contents differ.
        """
        if self._mesh is not None:
            from paraminit_ext import mesh

            mesh.require_equal_on_ranks(
                "save_initialized",
                self._mesh,
                content,
                "the same checkpoint",
                "Pass the same plan, key and sizes on every rank.",
            )

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run a block on each process, and raise on all of them if it raises on one.

        Raises:
            RuntimeError: the block raised on another process.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed_place = self._latest(-1 if error is None else self.place)
        if error is not None:
            raise error
        if failed_place >= 0:
            raise RuntimeError(
                f"paraminit_ext.save_initialized: expected success on all {self.count} ranks, got an "
                f"error on the rank at place {failed_place} of the mesh. Fix the error of that rank, and "
                "call again."
            )

    def _latest(self, place: int) -> int:
        if self._mesh is None:
            return place
        from paraminit_ext import mesh

        return mesh.max_over_ranks(self._mesh, [place])[0]
