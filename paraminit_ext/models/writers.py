"""Who writes the files of a checkpoint: this process alone, or the ranks of a mesh, some files each."""

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
    """The processes that write one checkpoint together, all of which take the same steps.

    Args:
        tensors: those of the module; where there are DTensors, the ranks of the largest of their meshes write
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._mesh: DeviceMesh | None = None
        self.place, self.count = 0, 1
        meshes = [found for one in tensors if (found := mesh_of(one)) is not None]
        if meshes:
            from paraminit_ext import mesh

            widest: DeviceMesh = max(meshes, key=lambda one: one.size())
            ranks = mesh.ranks_of(widest)
            if ranks is not None:
                self._mesh, (self.place, self.count) = widest, ranks

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.place == 0

    def own(self, files: Sequence[_T]) -> list[_T]:
        """Those that this process writes: every one is some process's."""
        return list(files[self.place :: self.count])

    def refuse_others(self, content: bytes) -> None:
        """Raise on all of them unless each is to write the same.

        Raises:
            RuntimeError: some are not.
        """
        if self._mesh is not None:
            from paraminit_ext import mesh

            mesh.refuse_others(
                "save_initialized",
                self._mesh,
                content,
                "the same checkpoint",
                "Pass the same plan, key and sizes on every rank.",
            )

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Do a block on each of them, and raise on all of them where it raises on one.

        Raises:
            RuntimeError: another process raised.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = self._latest(-1 if error is None else self.place)
        if error is not None:
            raise error
        if failed >= 0:
            raise RuntimeError(
                f"paraminit_ext.save_initialized: expected all {self.count} ranks to go on, got an error on "
                f"the one at place {failed} of the mesh. Its own message says what to mend; then call again."
            )

    def _latest(self, place: int) -> int:
        if self._mesh is None:
            return place
        from paraminit_ext import mesh

        return mesh.largest(self._mesh, [place])[0]
