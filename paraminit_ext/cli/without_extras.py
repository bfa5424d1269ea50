"""The commands ``info`` and ``verify``, which need only torch; the command line without typer and rich."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict

from paraminit_ext import verify
from paraminit_ext.cli.build_facts import info

# The commands that need the packages of the extra `cli`.
_OTHERS = ("demo", "summary", "audit", "plot", "plan", "show", "checkpoint", "diff")
_INSTALL = 'pip install "paraminit_ext[cli]"'


def print_info(as_json: bool) -> None:
    facts = info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


def print_verdict(device: str, quick: bool, as_json: bool) -> int:
    """Run the checks, print the results and return the exit status."""
    if not as_json or verify.refusal(device):
        return verify.verify(device, quick)
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mean is more than 2 std", category=UserWarning)
        checks = list(verify.checks(device, quick))
    right = all(check.right for check in checks)
    found = {
        "right": right,
        "seconds": time.monotonic() - start,
        "checks": [asdict(check) for check in checks],
    }
    print(json.dumps(found, indent=2))
    return 0 if right else 1


def main(arguments: list[str]) -> int:
    """Run the command line without typer and rich, and return the exit status."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command in _OTHERS:
        print(
            f"paraminit-ext {command}: expected the packages typer and rich, which are not installed. "
            f"Run `{_INSTALL}`.",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(
        prog="paraminit-ext",
        description="torch.nn.init on compiled kernels. Without typer and rich, two commands are available.",
        epilog=f"More commands ({', '.join(_OTHERS)}) need typer and rich: {_INSTALL}",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    facts = commands.add_parser("info", help="print facts about this build and machine, for a bug report")
    checks = commands.add_parser("verify", help="check that this build computes the right numbers here")
    checks.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda checks the GPU as well (default: cpu)"
    )
    checks.add_argument("--quick", action="store_true", help="use smaller samples; takes less than a minute")
    for subparser in (facts, checks):
        subparser.add_argument("--json", action="store_true", help="print JSON")
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as error:
        return int(error.code or 0)
    if parsed.command == "verify":
        return print_verdict(parsed.device, parsed.quick, parsed.json)
    print_info(parsed.json)
    return 0
