"""A fill takes as many threads as its CPU quota allows, and threads finish the work of other threads."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import subprocesses
from paraminit_ext import _C

ROOT = Path(__file__).resolve().parents[1]
CXX = os.environ.get("CXX", "c++").split()

# Files under the root, and the number of processors that they allow; 0 means no quota.
GROUPS: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 0),
    "a group without a quota": (
        {"proc/self/cgroup": "0::/user\n", "sys/fs/cgroup/user/cpu.max": "max 100000\n"},
        0,
    ),
    "a group of three processors": (
        {"proc/self/cgroup": "0::/user\n", "sys/fs/cgroup/user/cpu.max": "300000 100000\n"},
        3,
    ),
    "a processor and a half": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "75000 50000\n"},
        2,
    ),
    "a tenth of a processor": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"},
        1,
    ),
    "a smaller quota around the group": (
        {
            "proc/self/cgroup": "0::/pods/one/main\n",
            "sys/fs/cgroup/pods/one/main/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/pods/cpu.max": "400000 100000\n",
        },
        4,
    ),
    "a container that sees its group as the root": (
        {"proc/self/cgroup": "0::/docker/1f2e\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a/b\n0::/a/b\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "600000\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
        },
        6,
    ),
    "version 1 without a quota": (
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        0,
    ),
    "files that are not what they should be": (
        {"proc/self/cgroup": "nonsense\n0::\n::\n", "sys/fs/cgroup/cpu.max": "\n"},
        0,
    ),
}


@pytest.mark.parametrize(("files", "processors"), GROUPS.values(), ids=GROUPS.keys())
def test_the_quota_is_the_least_of_the_groups_around_the_process(
    files: dict[str, str], processors: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _C.read_cpu_quota(str(tmp_path)) == processors


# Join the group, if one is named, and print the share that the main thread does of a fill on four threads.
SHARE = """
import os, sys, time
if sys.argv[1:]:
    with open(sys.argv[1], "w") as tasks:
        tasks.write(str(os.getpid()))
import torch
import paraminit_ext
tensor = torch.empty(1 << 24)
def cost(threads):
    torch.set_num_threads(threads)
    spent = []
    for _ in range(7):
        begin = time.thread_time()
        paraminit_ext.normal_(tensor)
        spent.append(time.thread_time() - begin)
    return min(spent)
cost(1)  # fault in the pages
print(cost(4) / cost(1))
"""


def own_share(*group: Path) -> float:
    # Waiting threads sleep, so that all CPU time is work.
    return float(*subprocesses.lines(SHARE, *map(str, group), OMP_WAIT_POLICY="passive"))


@contextlib.contextmanager
def group_of_one_processor() -> Iterator[Path]:
    """Yield the file through which a process joins a new control group, or raise OSError without one."""
    for root, quota in (("cpu", "cpu.cfs_quota_us"), ("", "cpu.max")):
        folder = Path("/sys/fs/cgroup") / root / "paraminit_ext_test"
        if not (folder.parent / "cgroup.procs").exists():
            continue
        folder.mkdir()
        try:
            (folder / quota).write_text("100000")
            yield folder / "cgroup.procs"
        finally:
            folder.rmdir()
        return
    raise FileNotFoundError("no control groups")


def test_a_fill_takes_no_more_threads_than_the_quota_pays_for() -> None:
    # On two or more processors the thread does a quarter and what the others leave; on one it does all.
    assert own_share() < 0.75
    try:
        with group_of_one_processor() as group:
            assert own_share(group) > 0.75
    except OSError as error:
        pytest.skip(f"needs permission to make a control group with a CPU quota ({error})")


# The first unit waits for all other units, including those of its own thread's share.
SHARES = """
#include <atomic>
#include <chrono>
#include <cstdio>
#include <vector>
#include "csrc/cpu/parallel.h"
#include "tools/driver/pool.h"

namespace paraminit {
DefaultFloatMode::DefaultFloatMode() : saved_(0) {}
DefaultFloatMode::~DefaultFloatMode() {}
int64_t cpu_quota() { return 0; }
}  // namespace paraminit

int main() {
  driver::use_threads();
  const int64_t units = 1001;
  std::vector<std::atomic<int>> taken(units);
  std::atomic<int64_t> done{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  paraminit::run_on_threads(units, paraminit::kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      ++taken[static_cast<size_t>(unit)];
      while (unit == 0 && done < units - 1 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
      }
      ++done;
    }
  });
  int64_t once = 0;
  for (const auto& times : taken) once += times == 1;
  const bool late = std::chrono::steady_clock::now() >= deadline;
  std::printf("%lld of %lld once, %s\\n", static_cast<long long>(once),
              static_cast<long long>(units), late ? "late" : "in time");
}
"""


@pytest.mark.skipif(shutil.which(CXX[0]) is None, reason="needs a C++ compiler")
def test_a_thread_goes_on_with_what_another_one_has_left(tmp_path: Path) -> None:
    (tmp_path / "shares.cpp").write_text(SHARES)
    program = tmp_path / "shares"
    flags = ["-std=c++20", "-pthread", "-I."]
    sources: list[str | Path] = [tmp_path / "shares.cpp", "csrc/cpu/threads.cpp"]
    subprocess.run([*CXX, *flags, *sources, "-o", program], cwd=ROOT, check=True)
    ran = subprocess.run([program], capture_output=True, text=True, check=True)
    assert ran.stdout == "1001 of 1001 once, in time\n"
