"""The guard of what a CUDA fill takes: instructions an element in the machine code for sm_90, against limits.

Counted on the hot path of a kernel's main loop, which is the shortest way round that makes all of its 16-byte
stores. Needs no GPU, and of packages none: it reads what `cuobjdump` makes of a built extension.
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
# A kernel that takes its key from device memory makes most of the key schedule anew in each round.
KEY_ON_DEVICE = ", key on the device"
SCHEDULE = 22
# A kernel that fills many tensors.
MANY = ", many"
# What must not be in a main loop at all: local memory, barriers, approximations but those that a correctly
# rounded root or a quotient of doubles begins with.
FORBIDDEN = re.compile(r"^(LDL|STL|BAR|MUFU(?!\.(RSQ|RSQ64H|RCP64H)$))")
TYPES = {"f": ("fp32", 4), "d": ("fp64", 8), "NS_4HalfE": ("fp16", 2), "NS_8BFloat16E": ("bf16", 2)}


class SassError(Exception):
    """What keeps the guard from counting, in one line."""


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: where it stands, under which predicate, what it is."""

    address: int
    predicate: str
    text: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.match(r"BRA\b.*?(0x[0-9a-f]+)$", self.text)
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        always = self.predicate == "" and "P" not in self.text.partition("0x")[0][4:]
        return not (always and re.match(r"(BRA|EXIT|RET|BRX|JMP)\b", self.text))

    @property
    def stores_packet(self) -> bool:
        # ST is for an address that came from memory, of which no compiler knows the space.
        return re.match(r"STG?\.E(\.\w+)*\.128\b", self.text) is not None


@dataclass(frozen=True)
class Kernel:
    """A kernel that the guard knows: its distribution, its element type, where its key comes from."""

    name: str
    element_size: int
    instructions: list[Instruction]


def kernels(listing: str) -> list[Kernel]:
    """The kernels of dense fills, of one tensor and of many, in the listing."""
    found = []
    for part in re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]:
        mangled, _, body = part.partition("\n")
        start = re.search(r"(?:dense|(many))_kernelINS0_(\d+)", mangled)
        if start is None:
            continue
        length = int(start[2])
        distribution, rest = mangled[start.end() :][:length], mangled[start.end() + length :]
        # Whether it is clamped; a uniform's second flag, of round ranges, is the CPU's.
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
    """Of the loops with no loop inside, the one that stores most; of those, the first."""
    code = kernel.instructions
    place = {one.address: index for index, one in enumerate(code)}
    spans = [
        (place[one.target], index)
        for index, one in enumerate(code)
        if one.target is not None and one.target in place and place[one.target] < index
    ]
    inner = [
        span
        for span in spans
        if not any(span[0] <= other[0] and other[1] <= span[1] for other in spans if other != span)
    ]
    loops = [code[first : last + 1] for first, last in inner]
    if not any(one.stores_packet for loop in loops for one in loop):
        raise SassError(f"sass: expected a loop with 16-byte stores in {kernel.name}, got none")
    return max(loops, key=lambda loop: sum(one.stores_packet for one in loop))


def hot_path(loop: Sequence[Instruction]) -> list[Instruction]:
    """The shortest way from the head of a loop to its last instruction, which jumps back."""
    place = {one.address: index for index, one in enumerate(loop)}
    last = len(loop) - 1
    lengths: dict[int, int] = {last: 1}
    follow: dict[int, int] = {}
    for index in range(last - 1, -1, -1):
        one = loop[index]
        nexts = [place[one.target]] if one.target in place and place[one.target] > index else []
        if one.falls_through:
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
    """What the hot path of a kernel takes."""

    name: str
    instructions: int
    elements: int
    forbidden: list[str]

    @property
    def an_element(self) -> float:
        return self.instructions / self.elements


def count(kernel: Kernel) -> Count:
    loop = main_loop(kernel)
    path = hot_path(loop)
    stores = sum(one.stores_packet for one in path)
    if stores != sum(one.stores_packet for one in loop):
        raise SassError(f"sass: expected all stores on the hot path of {kernel.name}, got {stores} of them")
    forbidden = sorted({one.text.split()[0] for one in loop if FORBIDDEN.match(one.text.split()[0])})
    return Count(kernel.name, len(path), stores * 16 // kernel.element_size, forbidden)


def limit_of(one: Count) -> float | None:
    limit = LIMITS.get(one.name.removesuffix(KEY_ON_DEVICE))
    if limit is None or KEY_ON_DEVICE not in one.name:
        return limit
    return limit + SCHEDULE / one.elements


def wrong(counted: Sequence[Count]) -> list[str]:
    """One line for each limit that does not hold, or that nothing was counted for."""
    lines = []
    for one in counted:
        limit = limit_of(one)
        if limit is not None and one.an_element > limit:
            lines.append(
                f"sass: expected {one.name} at most {limit:.2f} an element, got {one.an_element:.2f}"
            )
        if one.forbidden:
            lines.append(f"sass: expected none of {', '.join(one.forbidden)} in {one.name}")
    missing = LIMITS.keys() - {one.name for one in counted}
    return lines + [f"sass: expected a kernel {name}, got none" for name in sorted(missing)]


def listing(extension: Path) -> str:
    """The machine code of a built extension, or "" where it has none for the architecture."""
    site = Path(sysconfig.get_path("purelib"))
    # Beside nvcc where the toolkit is whole, else in the wheel of Triton that torch brings.
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"),) if home]
    folders += [Path("/usr/local/cuda/bin"), site / "triton/backends/nvidia/bin"]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SassError("sass: expected cuobjdump, got none; install the CUDA toolkit's, or triton")
    # It runs nvdisasm, which lies beside it.
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
        counted = sorted((count(kernel) for kernel in kernels(text)), key=lambda one: one.name)
    except SassError as error:
        print(error)
        return 1
    print(f"instructions an element ({ARCHITECTURE}, hot path of the main loop)")
    for one in counted:
        limit = limit_of(one)
        shown = "" if limit is None else f"  limit {limit:6.2f}"
        print(f"  {one.name:<40} {one.instructions:4} / {one.elements:2} = {one.an_element:6.2f}{shown}")
    lines = wrong(counted)
    print("\n".join(lines) if lines else f"sass: {len(counted)} kernels within {len(LIMITS)} limits")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
