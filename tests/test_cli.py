"""``paraminit-ext``: the output and exit status of each command, in this process or, if needed, in its own.

Errors, interruptions and missing packages are tested as a user sees them: the exit status, one line on
standard error, and no half-written file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

pytest.importorskip("typer", reason="needs typer and rich (make build)")
pytest.importorskip("rich", reason="needs typer and rich (make build)")

from typer.testing import CliRunner

import paraminit_ext.__main__
import paraminit_ext.verify
from paraminit_ext import InitPlan, Key, deferred_init, materialize_module, summary
from paraminit_ext.cli.app import app
from paraminit_ext.models import target
from subprocesses import PACKAGE_ROOT
from test_models import needs

# The models' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")

COMMANDS = ("demo", "info", "verify", "summary", "audit", "plot", "plan", "show", "checkpoint", "diff")
ROOT = Path(__file__).resolve().parents[1]

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODULE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.scale = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.scale, std=0.5)

def build():
    print("a model that talks")
    return Model()

def narrow():
    return Model(8)

def refuses():
    raise ValueError("no model\\ntoday")

def breaks():
    return {}["nothing"]

def number():
    return 3

module = nn.Linear(4, 4)
text = "no function"
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the commands in a folder that has a module of models and a configuration."""
    (tmp_path / "models_here.py").write_text(MODULE)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("models_here", None)


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(app, list(arguments), prog_name="paraminit-ext")


def check_output(*arguments: str, status: int = 0, **environment: str) -> str:
    """Run the command, check its exit status and return its standard output."""
    result = run(*arguments, **environment)
    assert result.exit_code == status, result.output
    printed: str = result.stdout
    return printed


def run_in_process(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, after the given lines of Python."""
    code = (
        f"{before}\nimport sys\nfrom paraminit_ext.__main__ import main\nsys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=120,
        check=False,
    )


def environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {**known, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONWARNINGS": "ignore"}


def only_line(text: str) -> str:
    """Return the only line of a text."""
    assert text.endswith("\n")
    (line,) = text.splitlines()
    return line


# ----------------------------------------------------------------------------------------
# Help
# ----------------------------------------------------------------------------------------


def example(command: str) -> str:
    """Return the example in the command's help, without the name of the program."""
    (line,) = re.findall(rf"^ +paraminit-ext ({command}\b.*)$", check_output(command, "--help"), re.MULTILINE)
    return str(line)


def test_the_help_lists_the_commands_that_are_tested_here() -> None:
    listed = check_output("--help").partition("Commands:")[2]
    assert tuple(re.findall(r"^  (\w+) ", listed, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_sentences_that_fit_eighty_columns(command: str) -> None:
    lines = check_output(*command.split(), "--help").splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not any("..." in line for line in lines[1:])
    assert "paraminit-ext" in "\n".join(lines[1:])


# reStructuredText: double backticks, roles, literal blocks and rules.
MARKUP = re.compile(r"``|:\w+:`|::|={4}|^\.\. ", re.MULTILINE)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_no_markup(command: str) -> None:
    assert MARKUP.search(":func:`summary`")
    assert not MARKUP.search(check_output(*command.split(), "--help"))


@pytest.mark.parametrize("command", ["", "info", "verify"])
def test_help_without_optional_packages_shows_no_markup(command: str, workdir: Path) -> None:
    shown = run_in_process(workdir, *command.split(), "--help", before=block_imports("typer", "rich"))
    assert shown.returncode == 0, shown.stderr
    assert "paraminit-ext" in shown.stdout
    assert not MARKUP.search(shown.stdout)


@pytest.mark.parametrize("status", ["0", "1", "2", "130"])
def test_the_help_says_what_each_exit_status_means(status: str) -> None:
    assert re.search(rf"^ +{status} +\w", check_output("--help").partition("Exit status")[2], re.MULTILINE)


def test_without_a_command_the_help_is_an_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


@needs("transformers")
def test_every_example_of_the_help_runs_as_it_stands(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    right = paraminit_ext.verify.Check("one", "right", True)
    monkeypatch.setattr(paraminit_ext.verify, "checks", lambda *_: iter([right]))
    # Other commands read the files that these two write.
    for command in sorted(COMMANDS, key=lambda command: command not in ("plan", "checkpoint")):
        check_output(*shlex.split(example(command)))
    assert {"model.plan", "model.png", "checkpoint"} <= {path.name for path in workdir.iterdir()}


@needs("transformers")
def test_every_command_of_the_guide_runs_in_its_order(workdir: Path) -> None:
    lines = re.findall(
        r"^paraminit-ext (.*?)(?:  #.*)?$", (ROOT / "docs/guide/command_line.md").read_text(), re.MULTILINE
    )
    assert len(lines) >= 7
    for line in lines:
        check_output(*shlex.split(line))


def test_the_console_script_is_the_function_that_is_tested_here() -> None:
    listed = re.search(r'^paraminit-ext = "(.*):(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed is not None
    assert listed.groups() == ("paraminit_ext.__main__", "main")
    assert callable(paraminit_ext.__main__.main)


def test_a_wheel_has_every_part_of_the_package_and_none_needs_the_repository() -> None:
    package = ROOT / "paraminit_ext"
    listed = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed is not None
    parts = [path.parent.relative_to(ROOT).parts for path in package.rglob("__init__.py")]
    assert sorted(json.loads(listed[1])) == sorted(".".join(names) for names in parts)
    for path in package.rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) (benchmarks|tests|tools|prove)\b", path.read_text(), re.MULTILINE
        )


# ----------------------------------------------------------------------------------------
# A newcomer's path
# ----------------------------------------------------------------------------------------


@needs("transformers")
def test_a_newcomer_gets_from_a_configuration_to_a_token(workdir: Path) -> None:
    pytest.importorskip("matplotlib")
    import transformers

    check_output("plan", "config.json", "llama.plan", "--seed", "7")
    check_output("checkpoint", "config.json", "out", "--seed", "7")
    assert "model.layers.*.mlp.up_proj.weight x 2" in check_output("summary", "out")
    assert "bit for bit what the plan says" in check_output("audit", "out", "--plan", "llama.plan")
    check_output("plot", "out", "llama.png", "--plan", "llama.plan")
    assert (workdir / "llama.png").read_bytes().startswith(b"\x89PNG")
    assert check_output("diff", "llama.plan", "out").startswith("equal: ")

    model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "out")
    tokens = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=1, do_sample=False)
    assert tokens.shape == (1, 4)
    plan = InitPlan.load(workdir / "llama.plan")
    expected = plan.apply(transformers.AutoModelForCausalLM.from_config(model.config))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


# ----------------------------------------------------------------------------------------
# JSON
# ----------------------------------------------------------------------------------------

JSON_COMMANDS = [
    ("info", ["info"], "torch"),
    ("summary", ["summary", "models_here:build"], "tensors"),
    ("summary of a path", ["summary", "out"], "tensors"),
    ("audit", ["audit", "models_here:build"], "findings"),
    ("plan", ["plan", "models_here:build", "new.plan"], "parameters"),
    ("show", ["show", "model.plan"], "entries"),
    ("checkpoint", ["checkpoint", "models_here:build", "new"], "files"),
    ("checkpoint of a plan", ["checkpoint", "model.plan", "new"], "files"),
    ("diff", ["diff", "model.plan", "out"], "differences"),
    ("demo", ["demo", "--preset", "tiny", "--rounds", "1"], "kinds"),
]


def write_plan_and_checkpoint(workdir: Path) -> None:
    """Write a plan and its checkpoint."""
    check_output("plan", "models_here:build", "model.plan")
    check_output("checkpoint", "models_here:build", "out")


@pytest.mark.parametrize(
    ("arguments", "field"), [case[1:] for case in JSON_COMMANDS], ids=[case[0] for case in JSON_COMMANDS]
)
def test_json_is_all_that_stands_on_standard_output(arguments: list[str], field: str, workdir: Path) -> None:
    write_plan_and_checkpoint(workdir)
    report = json.loads(check_output(*arguments, "--json"))
    assert field in report


def test_a_plot_is_reported_as_json(workdir: Path) -> None:
    pytest.importorskip("matplotlib")
    report = json.loads(check_output("plot", "models_here:build", "model.svg", "--json"))
    assert report == {"out": "model.svg", "nbytes": (workdir / "model.svg").stat().st_size}


@pytest.mark.parametrize("right", [True, False])
def test_the_checks_of_verify_are_reported_as_json(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [paraminit_ext.verify.Check("one", "found", True), paraminit_ext.verify.Check("two", "x", right)]
    monkeypatch.setattr(paraminit_ext.verify, "checks", lambda *_: iter(listed))
    report = json.loads(check_output("verify", "--json", status=0 if right else 1))
    assert report["right"] is right
    assert [check["name"] for check in report["checks"]] == ["one", "two"]


def test_numbers_that_json_does_not_have_are_texts(workdir: Path) -> None:
    check_output("plan", "models_here:build", "model.plan")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(check_output("show", "model.plan", "--json"), parse_constant=refuse)
    scale = next(entry for entry in report["entries"] if entry["name"] == "scale")
    assert scale["law"] == {"name": "normal_", "mean": 0.0, "std": 0.5, "low": "-inf", "high": "inf"}
    assert scale["steps"][0]["do"] == "normal_"


# ----------------------------------------------------------------------------------------
# Targets
# ----------------------------------------------------------------------------------------


def test_a_model_has_the_values_of_its_checkpoint_and_of_no_other_seed(workdir: Path) -> None:
    check_output("checkpoint", "models_here:build", "out", "--seed", "5")

    def values(*arguments: str) -> dict[str, Any]:
        report = json.loads(check_output("summary", *arguments, "--json"))
        return {
            tensor["name"]: (tensor["mean"], tensor["std"], tensor["min"]) for tensor in report["tensors"]
        }

    assert values("models_here:build", "--seed", "5") == values("out")
    assert values("models_here:build") == values("models_here:build", "--seed", "0")
    assert values("models_here:build") != values("out")


@needs("transformers")
@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["MyOwnForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Unknown"]}, "LlamaModel"),
        ({"architectures": None}, "LlamaModel"),
    ],
)
def test_a_configuration_is_the_model_that_it_names(fields: dict[str, Any], kind: str, workdir: Path) -> None:
    (workdir / "config.json").write_text(json.dumps(CONFIG | fields))
    (workdir / "folder").mkdir()
    (workdir / "folder" / "config.json").write_text(json.dumps(CONFIG | fields))
    for text in ("config.json", "folder"):
        parsed = target.parse(text)
        assert isinstance(parsed, target.Model)
        assert type(parsed.build()).__name__ == kind


def test_the_kind_of_a_target_follows_from_its_content_and_not_from_its_suffix(workdir: Path) -> None:
    write_plan_and_checkpoint(workdir)
    (workdir / "plan.safetensors").write_bytes((workdir / "model.plan").read_bytes())
    (workdir / "weights.plan").write_bytes((workdir / "out" / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"scale": "model.safetensors"}}
    (workdir / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
    kinds = {
        "plan.safetensors": target.PlanFile,
        "weights.plan": target.Checkpoint,
        "out": target.Checkpoint,
        "out/model.safetensors": target.Checkpoint,
        "out/model.safetensors.index.json": target.Checkpoint,
        "models_here:build": target.Model,
        "models_here:Model": target.Model,
        "models_here:module": nn.Linear,
    }
    assert {text: type(target.parse(text)) for text in kinds} == kinds


def test_an_existing_module_is_read_as_it_is(workdir: Path) -> None:
    report = json.loads(check_output("summary", "models_here:module", "--json"))
    module = sys.modules["models_here"].module
    assert report["tensors"] == [tensor.to_dict() for tensor in summary(module)]


def test_rows_are_filtered_sorted_and_kept_apart(workdir: Path) -> None:
    def names(*arguments: str) -> list[str]:
        lines = check_output("summary", "models_here:build", *arguments).splitlines()
        return [line.split("  ")[0] for line in lines[1:-1]]

    assert names("--filter", "layers.*.bias", "--flat") == [f"layers.{place}.bias" for place in range(3)]
    assert names("--filter", "layers.*.bias") == ["layers.*.bias x 3"]
    assert names("--sort", "numel")[0] == "layers.*.weight x 3"
    assert names("--sort", "std")[0] == "scale"
    assert names("--sort", "name")[-1] == "scale"


def test_a_finding_of_an_audit_is_exit_status_one(workdir: Path) -> None:
    check_output("checkpoint", "models_here:build", "out")
    check_output("audit", "out")
    loaded = safetensors.torch.load_file(workdir / "out" / "model.safetensors")
    loaded["scale"][3] = torch.nan
    safetensors.torch.save_file(loaded, workdir / "spoiled.safetensors")
    assert "scale" in check_output("audit", "spoiled.safetensors", status=1)
    report = json.loads(check_output("audit", "spoiled.safetensors", "--json", status=1))
    assert [finding["names"] for finding in report["findings"]] == [["scale"]]


def test_an_audit_compares_with_the_plan_under_the_seed_that_is_given(workdir: Path) -> None:
    check_output("plan", "models_here:build", "model.plan", "--seed", "1")
    check_output("checkpoint", "model.plan", "out", "--seed", "2")
    check_output("audit", "out", "--plan", "model.plan", status=1)
    check_output("audit", "out", "--plan", "model.plan", "--seed", "2")
    check_output("audit", "models_here:build", "--plan", "model.plan", "--seed", "2")
    check_output("audit", "models_here:build", "--plan", "model.plan", status=1)


def test_what_differs_is_exit_status_one_and_what_is_equal_zero(workdir: Path) -> None:
    write_plan_and_checkpoint(workdir)
    check_output("plan", "models_here:build", "other.plan", "--seed", "1")
    check_output("checkpoint", "other.plan", "other")
    assert "seed 0 -> seed 1" in check_output("diff", "model.plan", "other.plan", status=1)
    check_output("diff", "model.plan", "other.plan", "--ignore-keys")
    assert "A is out, B is other" in check_output("diff", "out", "other", status=1)
    check_output("diff", "out", "out/model.safetensors")
    check_output("diff", "model.plan", "other", status=1)
    check_output("diff", "other", "model.plan", "--seed", "1")
    assert json.loads(check_output("diff", "out", "other", "--json", status=1))["equal"] is False


def test_the_seed_of_diff_is_that_of_models_or_of_a_plan_beside_a_checkpoint(workdir: Path) -> None:
    check_output("plan", "models_here:build", "zero.plan")
    check_output("plan", "models_here:build", "three.plan", "--seed", "3")
    check_output("checkpoint", "models_here:build", "three", "--seed", "3", "--dtype", "bfloat16")
    model = "models_here:build"
    for a, b in (
        (model, model),
        (model, "three.plan"),
        ("three.plan", model),
        (model, "three"),
        ("three", model),
        ("zero.plan", "three"),
        ("three", "zero.plan"),
    ):
        assert "equal: 7 tensors" in check_output("diff", a, b, "--seed", "3")
    # The seed of a plan is its own if a model is built beside it.
    assert "seed 3 -> seed 0" in check_output("diff", model, "zero.plan", "--seed", "3", status=1)
    check_output("diff", model, "three", "--seed", "4", status=1)


# ----------------------------------------------------------------------------------------
# Written files
# ----------------------------------------------------------------------------------------


def test_a_plan_is_that_of_deferred_init_and_its_line_says_how_large_it_is(workdir: Path) -> None:
    line = only_line(check_output("plan", "models_here:build", "model.plan", "--seed", "9"))
    assert line.startswith("model.plan: 7 tensors, 832 parameters, 3.33 kB of values; a plan of ")
    build = sys.modules["models_here"].build
    assert InitPlan.load(workdir / "model.plan") == InitPlan.of(deferred_init(build, key=Key(9)))


def test_a_checkpoint_is_that_of_the_materialised_model_in_the_dtype_that_is_asked_for(workdir: Path) -> None:
    check_output("checkpoint", "models_here:build", "out", "--seed", "9", "--dtype", "bf16")
    build = sys.modules["models_here"].build
    model = materialize_module(deferred_init(build, key=Key(9)), dtype=torch.bfloat16)
    loaded = safetensors.torch.load_file(workdir / "out" / "model.safetensors")
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_plan_is_overwritten_by_force_alone_and_another_file_never(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output("plan", "models_here:build", "model.plan")
    before = (workdir / "model.plan").read_bytes()
    arguments = ("plan", "models_here:build", "model.plan", "--seed", "1")
    check_output(*arguments, status=2)
    assert (workdir / "model.plan").read_bytes() == before
    check_output(*arguments, "--force")
    assert (workdir / "model.plan").read_bytes() != before
    check_output("checkpoint", "model.plan", "out")
    (workdir / "out.json").write_text("{}")
    # The kind of the target does not matter, so no package is needed to find it out.
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("config.json", "out.json", "models_here.py", "out/model.safetensors", "out"):
        path = workdir / name
        content = path.read_bytes() if path.is_file() else None
        result = run("plan", "models_here:build", name, "--force")
        assert result.exit_code == 2
        assert f"expected a new file or a plan, got {name}, which is neither" in result.stderr
        assert content is None or path.read_bytes() == content


# ----------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'. See `paraminit-ext --help`."),
        (["--nothing"], "No such option: --nothing"),
        (["summary"], "paraminit-ext summary: Missing argument 'TARGET'"),
        (["summary", "out", "--seed", "x"], "Invalid value for '--seed'"),
        (["summary", "out", "--seed", "1"], "expected a model that is built for --seed, got out"),
        (["summary", "models_here:build", "--seed", "-1"], "Key"),
        (["summary", "missing"], "got missing, which does not exist"),
        (["summary", "empty"], "expected safetensors files or a config.json in empty, got neither"),
        (["summary", "fields.json"], "expected a configuration with a model_type, or an index"),
        (["summary", "no.json"], "expected a configuration with a model_type, or an index"),
        (
            ["summary", "noise"],
            "expected a safetensors file, got noise, which is of another format or damaged",
        ),
        (["summary", "model.plan"], "expected a checkpoint or a model, got model.plan, a plan"),
        (["summary", "no_such_module:build"], "No module named 'no_such_module'"),
        (["summary", "models_here:nothing"], "expected nothing in the module models_here"),
        (["summary", "models_here:text"], "expected a function that returns a torch.nn.Module"),
        (["summary", "models_here:number"], "expected a function that returns a torch.nn.Module"),
        (["summary", "models_here:refuses"], "paraminit-ext summary: ValueError: no model today"),
        (["audit", "out", "--plan", "out"], "expected a plan, got out, a checkpoint"),
        (["plot", "out", "model.nothing"], "expected a suffix that matplotlib writes"),
        (["plan", "out", "new.plan"], "expected a config.json or module:function, got out, a checkpoint"),
        (
            ["plan", "models_here:module", "new.plan"],
            "expected a config.json or module:function, got a Linear",
        ),
        (["plan", "models_here:build", "no/new.plan"], "expected a directory for no/new.plan"),
        (["show", "out"], "expected a plan, got out, a checkpoint"),
        (["checkpoint", "out", "new"], "expected a config.json or module:function, got out, a checkpoint"),
        (["checkpoint", "models_here:build", "new", "--dtype", "int8"], "expected a floating-point dtype"),
        (["checkpoint", "models_here:build", "new", "--max-shard-size", "x"], "max_shard_size, got 'x'"),
        (["checkpoint", "models_here:narrow", "out"], "expected no other files than this checkpoint's"),
        (["diff", "out"], "Missing argument 'PLAN_OR_DIR'"),
        (
            ["diff", "out", "out", "--seed", "1"],
            "expected a model, or a plan and a checkpoint, for --seed, got out and out. Omit --seed.",
        ),
        (
            ["diff", "model.plan", "model.plan", "--seed", "1"],
            "expected a model, or a plan and a checkpoint, for --seed, got model.plan and model.plan.",
        ),
        (["diff", "out", "model.plan", "--ignore-keys"], "expected two plans with ignore_keys"),
        (["demo", "--preset", "huge"], "expected a preset among 8b, 1b, small, tiny, got huge"),
        (["demo", "--dtype", "int8"], "expected a floating-point dtype, got int8"),
        (["verify", "--device", "tpu"], "Invalid value for '--device'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_that_says_what_is_wrong(
    arguments: list[str], message: str, workdir: Path
) -> None:
    write_plan_and_checkpoint(workdir)
    (workdir / "empty").mkdir()
    (workdir / "noise").write_bytes(b"nothing that is known " * 9)
    (workdir / "no.json").write_text("{")
    (workdir / "fields.json").write_text("{}")
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line != "a model that talks"]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].startswith("paraminit")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--traceback", "summary", "models_here:refuses"], {}),
        (["summary", "models_here:refuses", "--traceback"], {}),
        (["summary", "models_here:refuses"], {"PARAMINIT_TRACEBACK": "1"}),
        (["summary", "models_here:breaks"], {}),
    ],
)
def test_a_traceback_is_shown_on_request_and_for_an_unexpected_error(
    arguments: list[str], environment: dict[str, str], workdir: Path
) -> None:
    result = run(*arguments, **environment)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "models_here.py" in result.stderr


def test_a_command_ends_quietly_when_its_reader_closes_the_pipe(workdir: Path) -> None:
    check_output("plan", "models_here:build", "model.plan")
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["show", "model.plan"], ["show", "model.plan", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "paraminit_ext", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (2, "")
    os.close(writer)


# ----------------------------------------------------------------------------------------
# Missing packages
# ----------------------------------------------------------------------------------------


def block_imports(*packages: str) -> str:
    # In sys.modules, None makes an import fail.
    return f"import sys; sys.modules.update(dict.fromkeys({packages!r}))"


def test_an_import_of_the_package_brings_none_of_the_optional_ones() -> None:
    code = "import sys, paraminit_ext; print([n for n in sys.argv[1:] if n in sys.modules])"
    packages = ["typer", "rich", "safetensors", "matplotlib", "transformers", "click"]
    done = subprocess.run(
        [sys.executable, "-c", code, *packages], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("missing", ["typer", "rich"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("info", "verify")])
def test_without_typer_or_rich_a_command_says_what_to_install(
    command: str,
    missing: str,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert paraminit_ext.__main__.main([command, "config.json", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert only_line(printed.err).endswith('Run `pip install "paraminit_ext[cli]"`.')
    assert command in printed.err


def test_without_any_optional_package_info_is_what_it_is_with_them(workdir: Path) -> None:
    optional = ("typer", "rich", "safetensors", "matplotlib", "transformers", "numpy")
    bare = run_in_process(workdir, "info", before=block_imports(*optional))
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout == run_in_process(workdir, "info").stdout
    assert json.loads(run_in_process(workdir, "info", "--json", before=block_imports(*optional)).stdout)[
        "torch"
    ]
    shown = run_in_process(workdir, "--help", before=block_imports(*optional))
    assert shown.returncode == 0
    assert "verify" in shown.stdout
    assert run_in_process(workdir, "verify", "--nothing", before=block_imports(*optional)).returncode == 2


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("safetensors", ["plan", "models_here:build", "new.plan"]),
        ("safetensors", ["show", "model.plan"]),
        ("safetensors", ["diff", "model.plan", "out"]),
        ("transformers", ["checkpoint", "config.json", "new"]),
        ("transformers", ["summary", "config.json"]),
        ("matplotlib", ["plot", "out", "new.png"]),
    ],
)
def test_without_a_package_a_command_says_how_to_install_it(
    package: str, arguments: list[str], workdir: Path
) -> None:
    write_plan_and_checkpoint(workdir)
    done = run_in_process(workdir, *arguments, before=block_imports(package))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith(f"Run `pip install {package}`.")
    assert "Traceback" not in done.stderr
    assert not (workdir / "new.plan").exists()


def test_a_checkpoint_is_read_without_safetensors(workdir: Path) -> None:
    write_plan_and_checkpoint(workdir)
    for command in (["summary", "out"], ["audit", "out"], ["diff", "out", "out"]):
        done = run_in_process(workdir, *command, before=block_imports("safetensors"))
        assert (done.returncode, done.stderr) == (0, "")


# ----------------------------------------------------------------------------------------
# Ctrl-C
# ----------------------------------------------------------------------------------------

# Replaces a function of os. A call for the output creates the file `started` and then sleeps.
SLOW = """
import os, time
from pathlib import Path
from models_here import build

real = os.{function}

def slow(first, *rest):
    done = real(first, *rest) if "{function}" == "write" else None
    if "{function}" != "write" or len(rest[0]) > 1000:
        Path("started").touch()
        time.sleep(60)
    return done

os.{function} = slow
"""


@pytest.mark.parametrize(
    ("arguments", "function", "out"),
    [
        (["plan", "slow:build", "new.plan"], "replace", "new.plan"),
        (["checkpoint", "slow:build", "new"], "write", "new/model.safetensors"),
        (["checkpoint", "slow:build", "new"], "replace", "new/model.safetensors"),
        (["plot", "slow:build", "new.png"], "replace", "new.png"),
    ],
    ids=["a plan", "half a checkpoint", "a checkpoint", "a plot"],
)
def test_an_interruption_leaves_no_file_under_its_name_and_is_one_line(
    arguments: list[str], function: str, out: str, workdir: Path
) -> None:
    if arguments[0] == "plot":
        pytest.importorskip("matplotlib")
    (workdir / "slow.py").write_text(SLOW.format(function=function))
    before = {path.name for path in workdir.iterdir()}
    running = subprocess.Popen(
        [sys.executable, "-m", "paraminit_ext", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell makes its background jobs ignore SIGINT, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (workdir / "started").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    printed, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert printed == ""
    assert errors.splitlines()[-1] == f"paraminit-ext {arguments[0]}: interrupted"
    assert "Traceback" not in errors
    assert not (workdir / out).exists()
    remaining = {path.name for path in workdir.rglob("*") if "__pycache__" not in path.parts}
    assert remaining - before <= {"started", "new"}


# ----------------------------------------------------------------------------------------
# Terminals
# ----------------------------------------------------------------------------------------


@needs("transformers")
@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_have_a_line_a_row(width: int, workdir: Path) -> None:
    check_output("plan", "config.json", "llama.plan")
    check_output("checkpoint", "config.json", "out")
    check_output("plan", "config.json", "other.plan", "--seed", "1")
    for arguments, status in (
        (["show", "llama.plan"], 0),
        (["summary", "out"], 0),
        (["summary", "config.json"], 0),
        (["diff", "llama.plan", "other.plan"], 1),
        (["info"], 0),
        (["demo", "--preset", "tiny", "--rounds", "1"], 0),
    ):
        lines = check_output(*arguments, status=status, COLUMNS=str(width)).splitlines()
        assert all(len(line.rstrip()) <= width for line in lines), arguments
        assert "\u2026" not in "".join(lines)
    rows = [line.split()[0] for line in check_output("show", "llama.plan", COLUMNS=str(width)).splitlines()]
    assert rows.count("model.layers.*.post_attention_layernorm.weight") == 1
    assert rows[-3] == "lm_head.weight"


def test_a_plan_that_is_printed_to_a_file_has_all_columns(workdir: Path) -> None:
    check_output("plan", "models_here:build", "model.plan")
    lines = check_output("show", "model.plan").splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "filled", "by", "mean", "std", "min", "max"]
    assert lines[1].split()[:5] == ["scale", "16", "float32", "normal_", "0"]
    assert lines[2].startswith("layers.*.weight x 3  16 x 16  float32  kaiming_uniform_  0 ")
    assert lines[-1] == "7 tensors, 832 parameters, 3.33 kB; Key(seed=0, offset=0)"
