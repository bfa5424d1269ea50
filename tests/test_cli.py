"""``paraminit-ext``: what each command prints and returns, in this process and, where it matters, in its own.

Errors, interruptions and missing packages are looked at as a user sees them: the exit status, one line on
standard error, and nothing half-written.
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
from fresh import PACKAGE_ROOT
from paraminit_ext import InitPlan, Key, deferred_init, materialize_module, summary
from paraminit_ext.cli.app import app
from paraminit_ext.models import target
from test_models import needs

# Of the models' own code.
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
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of models and a configuration, in which commands are run."""
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


def ran(*arguments: str, status: int = 0, **environment: str) -> str:
    """What the command prints to standard output; it must end with that status."""
    result = run(*arguments, **environment)
    assert result.exit_code == status, result.output
    printed: str = result.stdout
    return printed


def process(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """What the command does in a process of its own, after some lines of Python."""
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


def the_line(text: str) -> str:
    """The one line that is printed."""
    assert text.endswith("\n")
    (line,) = text.splitlines()
    return line


# ----------------------------------------------------------------------------------------
# Help
# ----------------------------------------------------------------------------------------


def example(command: str) -> str:
    """The example in the command's help, without its first word."""
    (line,) = re.findall(rf"^ +paraminit-ext ({command}\b.*)$", ran(command, "--help"), re.MULTILINE)
    return str(line)


def test_the_help_lists_the_commands_that_are_tested_here() -> None:
    listed = ran("--help").partition("Commands:")[2]
    assert tuple(re.findall(r"^  (\w+) ", listed, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_sentences_that_fit_eighty_columns(command: str) -> None:
    lines = ran(*command.split(), "--help").splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not any("..." in line for line in lines[1:])
    assert "paraminit-ext" in "\n".join(lines[1:])


@pytest.mark.parametrize("status", ["0", "1", "2", "130"])
def test_the_help_says_what_each_exit_status_means(status: str) -> None:
    assert re.search(rf"^ +{status} +\w", ran("--help").partition("Exit status")[2], re.MULTILINE)


def test_without_a_command_the_help_is_an_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


@needs("transformers")
def test_every_example_of_the_help_runs_as_it_stands(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    right = paraminit_ext.verify.Check("one", "right", True)
    monkeypatch.setattr(paraminit_ext.verify, "checks", lambda *_: iter([right]))
    # What one makes another reads.
    for command in sorted(COMMANDS, key=lambda command: command not in ("plan", "checkpoint")):
        ran(*shlex.split(example(command)))
    assert {"model.plan", "model.png", "checkpoint"} <= {path.name for path in here.iterdir()}


@needs("transformers")
def test_every_command_of_the_readme_runs_in_its_order(here: Path) -> None:
    lines = re.findall(r"^paraminit-ext (.*?)(?:  #.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        ran(*shlex.split(line))


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
def test_a_newcomer_gets_from_a_configuration_to_a_token(here: Path) -> None:
    pytest.importorskip("matplotlib")
    import transformers

    ran("plan", "config.json", "llama.plan", "--seed", "7")
    ran("checkpoint", "config.json", "out", "--seed", "7")
    assert "model.layers.*.mlp.up_proj.weight x 2" in ran("summary", "out")
    assert "bit for bit what the plan says" in ran("audit", "out", "--plan", "llama.plan")
    ran("plot", "out", "llama.png", "--plan", "llama.plan")
    assert (here / "llama.png").read_bytes().startswith(b"\x89PNG")
    assert ran("diff", "llama.plan", "out").startswith("equal: ")

    model = transformers.AutoModelForCausalLM.from_pretrained(here / "out")
    made = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=1, do_sample=False)
    assert made.shape == (1, 4)
    plan = InitPlan.load(here / "llama.plan")
    expected = plan.apply(transformers.AutoModelForCausalLM.from_config(model.config))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


# ----------------------------------------------------------------------------------------
# JSON
# ----------------------------------------------------------------------------------------

WRITTEN = [
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


def written(here: Path) -> None:
    """A plan and its checkpoint."""
    ran("plan", "models_here:build", "model.plan")
    ran("checkpoint", "models_here:build", "out")


@pytest.mark.parametrize(
    ("arguments", "field"), [one[1:] for one in WRITTEN], ids=[one[0] for one in WRITTEN]
)
def test_json_is_all_that_stands_on_standard_output(arguments: list[str], field: str, here: Path) -> None:
    written(here)
    found = json.loads(ran(*arguments, "--json"))
    assert field in found


def test_a_plot_is_told_as_json(here: Path) -> None:
    pytest.importorskip("matplotlib")
    found = json.loads(ran("plot", "models_here:build", "model.svg", "--json"))
    assert found == {"out": "model.svg", "nbytes": (here / "model.svg").stat().st_size}


@pytest.mark.parametrize("right", [True, False])
def test_the_checks_of_verify_are_told_as_json(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [paraminit_ext.verify.Check("one", "found", True), paraminit_ext.verify.Check("two", "x", right)]
    monkeypatch.setattr(paraminit_ext.verify, "checks", lambda *_: iter(listed))
    found = json.loads(ran("verify", "--json", status=0 if right else 1))
    assert found["right"] is right
    assert [check["name"] for check in found["checks"]] == ["one", "two"]


def test_numbers_that_json_does_not_have_are_texts(here: Path) -> None:
    ran("plan", "models_here:build", "model.plan")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(ran("show", "model.plan", "--json"), parse_constant=refuse)
    scale = next(one for one in found["entries"] if one["name"] == "scale")
    assert scale["law"] == {"name": "normal_", "mean": 0.0, "std": 0.5, "low": "-inf", "high": "inf"}
    assert scale["steps"][0]["do"] == "normal_"


# ----------------------------------------------------------------------------------------
# What is looked at
# ----------------------------------------------------------------------------------------


def test_a_model_has_the_values_of_its_checkpoint_and_of_no_other_seed(here: Path) -> None:
    ran("checkpoint", "models_here:build", "out", "--seed", "5")

    def values(*arguments: str) -> dict[str, Any]:
        found = json.loads(ran("summary", *arguments, "--json"))
        return {one["name"]: (one["mean"], one["std"], one["min"]) for one in found["tensors"]}

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
def test_a_configuration_is_the_model_that_it_names(fields: dict[str, Any], kind: str, here: Path) -> None:
    (here / "config.json").write_text(json.dumps(CONFIG | fields))
    (here / "folder").mkdir()
    (here / "folder" / "config.json").write_text(json.dumps(CONFIG | fields))
    for text in ("config.json", "folder"):
        found = target.parse(text)
        assert isinstance(found, target.Model)
        assert type(found.build()).__name__ == kind


def test_what_a_text_names_is_told_by_what_is_there_and_not_by_its_ending(here: Path) -> None:
    written(here)
    (here / "plan.safetensors").write_bytes((here / "model.plan").read_bytes())
    (here / "weights.plan").write_bytes((here / "out" / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"scale": "model.safetensors"}}
    (here / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
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


def test_a_module_that_is_there_is_read_as_it_is(here: Path) -> None:
    found = json.loads(ran("summary", "models_here:module", "--json"))
    held = sys.modules["models_here"].module
    assert found["tensors"] == [one.to_dict() for one in summary(held)]


def test_rows_are_filtered_sorted_and_kept_apart(here: Path) -> None:
    def names(*arguments: str) -> list[str]:
        lines = ran("summary", "models_here:build", *arguments).splitlines()
        return [line.split("  ")[0] for line in lines[1:-1]]

    assert names("--filter", "layers.*.bias", "--flat") == [f"layers.{place}.bias" for place in range(3)]
    assert names("--filter", "layers.*.bias") == ["layers.*.bias x 3"]
    assert names("--sort", "numel")[0] == "layers.*.weight x 3"
    assert names("--sort", "std")[0] == "scale"
    assert names("--sort", "name")[-1] == "scale"


def test_a_finding_of_an_audit_is_exit_status_one(here: Path) -> None:
    ran("checkpoint", "models_here:build", "out")
    ran("audit", "out")
    held = safetensors.torch.load_file(here / "out" / "model.safetensors")
    held["scale"][3] = torch.nan
    safetensors.torch.save_file(held, here / "spoiled.safetensors")
    assert "scale" in ran("audit", "spoiled.safetensors", status=1)
    found = json.loads(ran("audit", "spoiled.safetensors", "--json", status=1))
    assert [one["names"] for one in found["findings"]] == [["scale"]]


def test_an_audit_compares_with_the_plan_under_the_seed_that_is_given(here: Path) -> None:
    ran("plan", "models_here:build", "model.plan", "--seed", "1")
    ran("checkpoint", "model.plan", "out", "--seed", "2")
    ran("audit", "out", "--plan", "model.plan", status=1)
    ran("audit", "out", "--plan", "model.plan", "--seed", "2")
    ran("audit", "models_here:build", "--plan", "model.plan", "--seed", "2")
    ran("audit", "models_here:build", "--plan", "model.plan", status=1)


def test_what_differs_is_exit_status_one_and_what_is_equal_zero(here: Path) -> None:
    written(here)
    ran("plan", "models_here:build", "other.plan", "--seed", "1")
    ran("checkpoint", "other.plan", "other")
    assert "seed 0 -> seed 1" in ran("diff", "model.plan", "other.plan", status=1)
    ran("diff", "model.plan", "other.plan", "--ignore-keys")
    assert "A is out, B is other" in ran("diff", "out", "other", status=1)
    ran("diff", "out", "out/model.safetensors")
    ran("diff", "model.plan", "other", status=1)
    ran("diff", "other", "model.plan", "--seed", "1")
    assert json.loads(ran("diff", "out", "other", "--json", status=1))["equal"] is False


# ----------------------------------------------------------------------------------------
# What is written
# ----------------------------------------------------------------------------------------


def test_a_plan_is_that_of_deferred_init_and_its_line_says_how_large_it_is(here: Path) -> None:
    line = the_line(ran("plan", "models_here:build", "model.plan", "--seed", "9"))
    assert line.startswith("model.plan: 7 tensors, 832 parameters, 3.33 kB of values; a plan of ")
    build = sys.modules["models_here"].build
    assert InitPlan.load(here / "model.plan") == InitPlan.of(deferred_init(build, key=Key(9)))


def test_a_checkpoint_is_that_of_the_materialised_model_in_the_dtype_that_is_asked_for(here: Path) -> None:
    ran("checkpoint", "models_here:build", "out", "--seed", "9", "--dtype", "bf16")
    build = sys.modules["models_here"].build
    model = materialize_module(deferred_init(build, key=Key(9)), dtype=torch.bfloat16)
    held = safetensors.torch.load_file(here / "out" / "model.safetensors")
    assert held.keys() == model.state_dict().keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())


def test_a_plan_is_overwritten_by_force_alone_and_another_file_never(here: Path) -> None:
    ran("plan", "models_here:build", "model.plan")
    before = (here / "model.plan").read_bytes()
    arguments = ("plan", "models_here:build", "model.plan", "--seed", "1")
    ran(*arguments, status=2)
    assert (here / "model.plan").read_bytes() == before
    ran(*arguments, "--force")
    assert (here / "model.plan").read_bytes() != before
    ran("checkpoint", "model.plan", "out")
    for name in ("config.json", "models_here.py", "out/model.safetensors", "out"):
        held = here / name
        content = held.read_bytes() if held.is_file() else None
        ran("plan", "models_here:build", name, "--force", status=2)
        assert content is None or held.read_bytes() == content


# ----------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "No such command 'nothing'. See `paraminit-ext --help`."),
        (["--nothing"], "No such option: --nothing"),
        (["summary"], "paraminit-ext summary: Missing argument 'TARGET'"),
        (["summary", "out", "--seed", "x"], "Invalid value for '--seed'"),
        (["summary", "out", "--seed", "1"], "expected a model that is built for --seed, got out"),
        (["summary", "models_here:build", "--seed", "-1"], "Key"),
        (["summary", "missing"], "got missing, which is not there"),
        (["summary", "empty"], "expected safetensors files or a config.json in empty, got neither"),
        (["summary", "fields.json"], "expected a configuration with a model_type, or an index"),
        (["summary", "no.json"], "expected a configuration with a model_type, or an index"),
        (["summary", "noise"], "expected a safetensors file, got another or a damaged one, noise"),
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
        (["diff", "out", "out", "--seed", "1"], "expected a plan and a checkpoint with a key"),
        (["diff", "out", "model.plan", "--ignore-keys"], "expected two plans with ignore_keys"),
        (["demo", "--preset", "huge"], "expected a preset among 8b, 1b, small, tiny, got huge"),
        (["demo", "--dtype", "int8"], "expected a floating-point dtype, got int8"),
        (["verify", "--device", "tpu"], "Invalid value for '--device'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_that_says_what_is_wrong(arguments: list[str], says: str, here: Path) -> None:
    written(here)
    (here / "empty").mkdir()
    (here / "noise").write_bytes(b"nothing that is known " * 9)
    (here / "no.json").write_text("{")
    (here / "fields.json").write_text("{}")
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line != "a model that talks"]
    assert len(lines) == 1
    assert says in lines[0]
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
def test_where_an_error_comes_from_is_shown_if_asked_for_or_if_none_expected_it(
    arguments: list[str], environment: dict[str, str], here: Path
) -> None:
    result = run(*arguments, **environment)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "models_here.py" in result.stderr


def test_whoever_stops_reading_gets_no_more(here: Path) -> None:
    ran("plan", "models_here:build", "model.plan")
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
# Packages that are not there
# ----------------------------------------------------------------------------------------


def without(*packages: str) -> str:
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
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert paraminit_ext.__main__.main([command, "config.json", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert the_line(printed.err).endswith('Run `pip install "paraminit_ext[cli]"`.')
    assert command in printed.err


def test_without_any_optional_package_info_is_what_it_is_with_them(here: Path) -> None:
    optional = ("typer", "rich", "safetensors", "matplotlib", "transformers", "numpy")
    bare = process(here, "info", before=without(*optional))
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout == process(here, "info").stdout
    assert json.loads(process(here, "info", "--json", before=without(*optional)).stdout)["torch"]
    shown = process(here, "--help", before=without(*optional))
    assert shown.returncode == 0
    assert "verify" in shown.stdout
    assert process(here, "verify", "--nothing", before=without(*optional)).returncode == 2


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
    package: str, arguments: list[str], here: Path
) -> None:
    written(here)
    done = process(here, *arguments, before=without(package))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith(f"Run `pip install {package}`.")
    assert "Traceback" not in done.stderr
    assert not (here / "new.plan").exists()


def test_a_checkpoint_is_read_without_safetensors(here: Path) -> None:
    written(here)
    for command in (["summary", "out"], ["audit", "out"], ["diff", "out", "out"]):
        done = process(here, *command, before=without("safetensors"))
        assert (done.returncode, done.stderr) == (0, "")


# ----------------------------------------------------------------------------------------
# Ctrl-C
# ----------------------------------------------------------------------------------------

# A function of os that, when it is called for what is written, says so and takes its time.
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
    arguments: list[str], function: str, out: str, here: Path
) -> None:
    if arguments[0] == "plot":
        pytest.importorskip("matplotlib")
    (here / "slow.py").write_text(SLOW.format(function=function))
    before = {path.name for path in here.iterdir()}
    running = subprocess.Popen(
        [sys.executable, "-m", "paraminit_ext", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell has its background jobs ignore the signal, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (here / "started").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    printed, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert printed == ""
    assert said.splitlines()[-1] == f"paraminit-ext {arguments[0]}: interrupted"
    assert "Traceback" not in said
    assert not (here / out).exists()
    left = {path.name for path in here.rglob("*") if "__pycache__" not in path.parts}
    assert left - before <= {"started", "new"}


# ----------------------------------------------------------------------------------------
# Terminals
# ----------------------------------------------------------------------------------------


@needs("transformers")
@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_have_a_line_a_row(width: int, here: Path) -> None:
    ran("plan", "config.json", "llama.plan")
    ran("checkpoint", "config.json", "out")
    ran("plan", "config.json", "other.plan", "--seed", "1")
    for arguments, status in (
        (["show", "llama.plan"], 0),
        (["summary", "out"], 0),
        (["summary", "config.json"], 0),
        (["diff", "llama.plan", "other.plan"], 1),
        (["info"], 0),
        (["demo", "--preset", "tiny", "--rounds", "1"], 0),
    ):
        lines = ran(*arguments, status=status, COLUMNS=str(width)).splitlines()
        assert all(len(line.rstrip()) <= width for line in lines), arguments
        assert "\u2026" not in "".join(lines)
    rows = [line.split()[0] for line in ran("show", "llama.plan", COLUMNS=str(width)).splitlines()]
    assert rows.count("model.layers.*.post_attention_layernorm.weight") == 1
    assert rows[-3] == "lm_head.weight"


def test_a_plan_that_is_printed_to_a_file_has_all_columns(here: Path) -> None:
    ran("plan", "models_here:build", "model.plan")
    lines = ran("show", "model.plan").splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "filled", "by", "mean", "std", "min", "max"]
    assert lines[1].split()[:5] == ["scale", "16", "float32", "normal_", "0"]
    assert lines[2].startswith("layers.*.weight x 3  16 x 16  float32  kaiming_uniform_  0 ")
    assert lines[-1] == "7 tensors, 832 parameters, 3.33 kB; Key(seed=0, offset=0)"
