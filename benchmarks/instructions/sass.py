"""Compare instructions per element of CUDA fills, counted in machine code for sm_90, with limits.

The count covers the hot path of a kernel's main loop: the shortest path through the loop, which must contain
all of its 16-byte stores. This needs no GPU and no packages: it reads `cuobjdump`'s listing of an extension.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURE = "sm_90"
# By kernel and element type.
LIMITS = {
    "UniformF fp32": 14.0,
    "UniformF fp16": 14.5,
    "UniformF bf16": 14.5,
    "UniformD fp64": 26.0,
    "NormalF fp32": 31.0,
    "NormalF fp16": 31.5,
    "NormalF bf16": 31.5,
    "NormalD fp64": 79.0,
    "TruncInteriorF fp32": 34.5,
    "TruncInteriorF fp16": 35.0,
    "TruncInteriorF bf16": 35.0,
    "TruncTwoSidedF fp32": 46.5,
    "TruncTwoSidedF fp16": 47.0,
    "TruncTwoSidedF bf16": 47.0,
    "UniformF fp32, many": 15.5,
    "UniformF bf16, many": 16.0,
    "NormalF fp32, many": 32.5,
    "NormalF bf16, many": 33.0,
}
# A kernel that reads its key from device memory recomputes most of the key schedule in each loop iteration.
KEY_ON_DEVICE = ", key on the device"
SCHEDULE = 22
# A kernel that fills many tensors.
MANY = ", many"
# Instructions that a main loop must not contain: local memory, barriers, and approximations. Allowed are the
# approximations that a correctly rounded root or a division of doubles starts with.
FORBIDDEN = re.compile(r"^(LDL|STL|BAR|MUFU(?!\.(RSQ|RSQ64H|RCP64H)$))")
TYPES = {"f": ("fp32", 4), "d": ("fp64", 8), "NS_4HalfE": ("fp16", 2), "NS_8BFloat16E": ("bf16", 2)}


class SassError(Exception):
    """Instructions cannot be counted. The message is one line that says why."""


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: its address, its predicate, its text."""

    address: int
    predicate: str
    text: str

    @property
    def target(self) -> int | None:
        """The target address of a branch; None for other instructions."""
        found = re.match(r"BRA\b.*?(0x[0-9a-f]+)$", self.text)
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        always = self.predicate == "" and "P" not in self.text.partition("0x")[0][4:]
        return not (always and re.match(r"(BRA|EXIT|RET|BRX|JMP)\b", self.text))

    @property
    def stores_packet(self) -> bool:
        # The compiler uses ST, for generic addresses, if an address was loaded from memory.
        return re.match(r"STG?\.E(\.\w+)*\.128\b", self.text) is not None


@dataclass(frozen=True)
class Kernel:
    """A kernel of dense fills. The name has its distribution, its element type and the source of its key."""

    name: str
    element_size: int
    instructions: list[Instruction]


def kernels(listing: str) -> list[Kernel]:
    """Return the kernels of dense fills, of one tensor and of many tensors, in the listing."""
    found = []
    for part in re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]:
        mangled, _, body = part.partition("\n")
        start = re.search(r"(?:dense|(many))_kernelINS0_(\d+)", mangled)
        if start is None:
            continue
        length = int(start[2])
        distribution, rest = mangled[start.end() :][:length], mangled[start.end() + length :]
        # The flag says whether the fill clamps. The second flag of a uniform is for the CPU and always 0.
        kind = re.match(rf"(?:ILb([01])E(?:Lb0E)?E)?E({'|'.join(TYPES)})(?:Lb([01])E)?E", rest)
        if kind is None:
            raise SassError(f"sass: expected the name of a kernel of dense fills, got {mangled}")
        dtype, size = TYPES[kind[2]]
        name = distribution + (", clamped" if kind[1] == "1" else "") + f" {dtype}"
        name += MANY if start[1] else KEY_ON_DEVICE if kind[3] == "1" else ""
        line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S.*?)\s*;", re.MULTILINE)
        instructions = [Instruction(int(at, 16), on, text) for at, on, text in line.findall(body)]
        found.append(Kernel(name, size, instructions))
    return found


def main_loop(kernel: Kernel) -> list[Instruction]:
    """Return the innermost loop with the most 16-byte stores; of several, the first."""
    code = kernel.instructions
    place = {instruction.address: index for index, instruction in enumerate(code)}
    spans = [
        (place[instruction.target], index)
        for index, instruction in enumerate(code)
        if instruction.target is not None
        and instruction.target in place
        and place[instruction.target] < index
    ]
    inner = [
        span
        for span in spans
        if not any(span[0] <= other[0] and other[1] <= span[1] for other in spans if other != span)
    ]
    loops = [code[first : last + 1] for first, last in inner]
    if not any(instruction.stores_packet for loop in loops for instruction in loop):
        raise SassError(f"sass: expected a loop with 16-byte stores in {kernel.name}, got none")
    return max(loops, key=lambda loop: sum(instruction.stores_packet for instruction in loop))


def hot_path(loop: Sequence[Instruction]) -> list[Instruction]:
    """Return the shortest path from the head of a loop to its last instruction, which jumps back."""
    place = {instruction.address: index for index, instruction in enumerate(loop)}
    last = len(loop) - 1
    lengths: dict[int, int] = {last: 1}
    follow: dict[int, int] = {}
    for index in range(last - 1, -1, -1):
        instruction = loop[index]
        nexts = (
            [place[instruction.target]]
            if instruction.target in place and place[instruction.target] > index
            else []
        )
        if instruction.falls_through:
            nexts.append(index + 1)
        reaching = [after for after in nexts if after in lengths]
        if reaching:
            follow[index] = min(reaching, key=lambda after: lengths[after])
            lengths[index] = lengths[follow[index]] + 1
    path, index = [], 0
    while index in lengths:
        path.append(loop[index])
        index = follow.get(index, last + 1)
    return path


@dataclass(frozen=True)
class Count:
    """The instructions and elements of the hot path of a kernel."""

    name: str
    instructions: int
    elements: int
    forbidden: list[str]

    @property
    def per_element(self) -> float:
        return self.instructions / self.elements


def count(kernel: Kernel) -> Count:
    loop = main_loop(kernel)
    path = hot_path(loop)
    stores = sum(instruction.stores_packet for instruction in path)
    if stores != sum(instruction.stores_packet for instruction in loop):
        raise SassError(f"sass: expected all stores on the hot path of {kernel.name}, got {stores} of them")
    names = {instruction.text.split()[0] for instruction in loop}
    forbidden = sorted(name for name in names if FORBIDDEN.match(name))
    return Count(kernel.name, len(path), stores * 16 // kernel.element_size, forbidden)


def limit_of(kernel: Count) -> float | None:
    """Return the limit of instructions per element, or None if the kernel has none."""
    limit = LIMITS.get(kernel.name.removesuffix(KEY_ON_DEVICE))
    if limit is None or KEY_ON_DEVICE not in kernel.name:
        return limit
    return limit + SCHEDULE / kernel.elements


def wrong(counted: Sequence[Count]) -> list[str]:
    """Return one line for each exceeded limit, forbidden instruction and missing kernel."""
    lines = []
    for kernel in counted:
        limit = limit_of(kernel)
        if limit is not None and kernel.per_element > limit:
            lines.append(
                f"sass: expected {kernel.name} at most {limit:.2f} an element, got {kernel.per_element:.2f}"
            )
        if kernel.forbidden:
            lines.append(f"sass: expected none of {', '.join(kernel.forbidden)} in {kernel.name}")
    missing = LIMITS.keys() - {kernel.name for kernel in counted}
    return lines + [f"sass: expected a kernel {name}, got none" for name in sorted(missing)]


def listing(extension: Path) -> str:
    """Return cuobjdump's listing of the machine code of a built extension for the architecture."""
    site = Path(sysconfig.get_path("purelib"))
    # cuobjdump is next to nvcc in a complete toolkit, and otherwise in the Triton wheel that torch installs.
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"),) if home]
    folders += [Path("/usr/local/cuda/bin"), site / "triton/backends/nvidia/bin"]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SassError("sass: expected cuobjdump, got none. Install the CUDA toolkit or triton.")
    # cuobjdump runs nvdisasm, which is in the same folder.
    environment = {**os.environ, "PATH": f"{Path(tool).parent}{os.pathsep}{path}"}
    command = [tool, "-sass", "-arch", ARCHITECTURE, str(extension)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SassError(f"sass: cuobjdump failed with status {done.returncode}: {last}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    try:
        if len(arguments) != 1:
            raise SassError(f"sass: expected the path of a built extension, got {len(arguments)} arguments")
        text = listing(Path(arguments[0]))
        if f"code for {ARCHITECTURE}" not in text:
            print(f"sass: not compared: {arguments[0]} has no code for {ARCHITECTURE}")
            return 0
        counted = sorted((count(kernel) for kernel in kernels(text)), key=lambda found: found.name)
    except SassError as error:
        print(error)
        return 1
    print(f"instructions per element ({ARCHITECTURE}, hot path of the main loop)")
    for kernel in counted:
        limit = limit_of(kernel)
        shown = "" if limit is None else f"  limit {limit:6.2f}"
        ratio = f"{kernel.instructions:4} / {kernel.elements:2} = {kernel.per_element:6.2f}"
        print(f"  {kernel.name:<40} {ratio}{shown}")
    lines = wrong(counted)
    print("\n".join(lines) if lines else f"sass: {len(counted)} kernels within {len(LIMITS)} limits")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
