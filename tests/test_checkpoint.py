"""Checkpoints written from plans: the same bits as transformers' files, and complete after any kill."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors
from torch import Tensor, nn

import subprocesses
from module_equality import bits, tensors
from paraminit_ext import InitPlan, Key, deferred_init, init, materialize_module, save_initialized, shard
from paraminit_ext.models import checkpoint
from paraminit_ext.models.checkpoint_contents import SavedTensor, contents_of_module
from paraminit_ext.models.plan import Entry
from paraminit_ext.models.steps import Draw, Step, View
from paraminit_ext.models.write import make, parts, parts_of_range
from test_models import needs
from zoo import TORCH, TRANSFORMERS, Build

KEY = Key(2026)
DIGEST = "paraminit_ext.save_initialized"
# transformers' own code warns.
pytestmark = pytest.mark.filterwarnings("ignore")


def _joined() -> nn.Module:
    """Build a model for which transformers joins several tensors into one when it saves the model."""
    import transformers

    model: nn.Module = transformers.NomicBertModel(
        transformers.NomicBertConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=101,
        )
    )
    return model


PRETRAINED: dict[str, Build] = {**TRANSFORMERS, "Nomic BERT": _joined}
every_pretrained = pytest.mark.parametrize(
    "build", [pytest.param(build, id=name, marks=needs("transformers")) for name, build in PRETRAINED.items()]
)
every_dtype = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as it is", "bf16"])


class Small(nn.Module):
    """Has a fill, a tie, constants, a row of zeros, a value, all kinds of buffers, a matrix and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16, padding_idx=3)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight
        self.inner = nn.Linear(16, 24)
        self.norm = nn.BatchNorm1d(24)
        self.square = nn.Parameter(torch.empty(8, 8))
        nn.init.orthogonal_(self.square)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.none = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("rotary", torch.arange(4.0), persistent=False)
        self.plain = torch.zeros(3)


def deferred(key: Key | None = KEY) -> Small:
    return deferred_init(Small, key=key)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, in its order, and the rest of the file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    assert size % 8 == 0
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def without_digest(path: Path) -> Any:
    """Return the content of a file without our entry in its metadata."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    header, rest = header_of(path)
    assert len(header["__metadata__"].pop(DIGEST)) == 64 if DIGEST in header["__metadata__"] else True
    return list(header.items()), rest


def load_shards(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards."""
    tensors_by_name: dict[str, Tensor] = {}
    for path in directory.glob("*.safetensors"):
        tensors_by_name |= safetensors.load_file(path)
    return tensors_by_name


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def identities(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the properties of each file that change when it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.iterdir()}


def check_message(raised: pytest.ExceptionInfo[BaseException]) -> str:
    """Check that an error message is one line of the usual form, and return it."""
    text = str(raised.value)
    assert "paraminit_ext.save_initialized: expected " in text
    assert ", got " in text
    assert "\n" not in text
    return text


# --- parts -----------------------------------------------------------------------------------


def concatenate(pieces: Iterator[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(part.clone() for part in pieces)])


@pytest.mark.parametrize(
    "build", [pytest.param(Small, id="Small"), *(pytest.param(b, id=n) for n, b in TORCH.items())]
)
@pytest.mark.parametrize("elements", [1, 7, 1000, 1 << 18])
def test_parts_side_by_side_are_the_tensor(build: Build, elements: int) -> None:
    plan = InitPlan.of(deferred_init(build, key=KEY))
    entries = [
        entry for entry in plan if plan.resolved(entry).steps and math.prod(entry.shape) < 500 * elements
    ]
    assert entries
    for entry in entries:
        whole = make(plan, plan.resolved(entry), "cpu", None)
        for dtype in (whole.dtype, torch.float16, torch.bfloat16):
            pieces = list(parts(plan, entry, dtype, elements=elements))
            assert all(part.dim() == 1 and part.numel() <= elements for part in pieces)
            again = concatenate(parts(plan, entry, dtype, elements=elements), dtype)
            assert torch.equal(bits(again), bits(whole.to(dtype).flatten())), entry.name


def plan_of_shape(*shape: int) -> tuple[InitPlan, Entry]:
    """Return a plan of one normal tensor of this shape, without a model, and its entry."""
    step = Step("normal_", (("tensor", View(0)), ("mean", 0.0), ("std", 0.02)), draw=0)
    entry = Entry("w", "parameter", torch.float32, shape, steps=(step,), draws=(Draw("w"),))
    return InitPlan({"w": entry}, KEY), entry


@pytest.mark.parametrize(
    ("shape", "start", "size"),
    [
        ((1 << 33,), (0,), (1 << 18,)),
        ((3, 1 << 24), (0, 0), (1, 1 << 18)),
        ((3, 5, 1 << 24), (0, 0, 0), (1, 1, 1 << 18)),
    ],
)
def test_a_row_that_is_longer_than_a_part_is_cut(
    shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    plan, entry = plan_of_shape(*shape)
    first = next(parts(plan, entry, torch.float32))
    expected = init.normal_(shard(torch.empty(size), shape, start), 0.0, 0.02, generator=KEY.fold_in("w"))
    assert torch.equal(first, expected.flatten())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_range_in_parts_of_any_size_is_that_range(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=4)))
    numel = math.prod(shape)
    begin = data.draw(st.integers(0, numel))
    end = data.draw(st.integers(begin, numel))
    elements = data.draw(st.integers(1, numel + 2))
    plan, entry = plan_of_shape(*shape)
    pieces = [
        part.clone() for part in parts_of_range(plan, entry, torch.float32, begin, end, elements=elements)
    ]
    assert all(0 < part.numel() <= elements for part in pieces)
    whole = make(plan, entry, "cpu", None).flatten()
    assert torch.equal(torch.cat([torch.empty(0), *pieces]), whole[begin:end])


def test_a_part_keeps_its_values_while_the_next_is_made() -> None:
    plan, entry = plan_of_shape(40, 10)
    for dtype in (torch.float32, torch.bfloat16):
        pieces = parts(plan, entry, dtype, elements=50)
        first = next(pieces)
        before = first.clone()
        second = next(pieces)
        assert torch.equal(first, before)
        assert not torch.equal(first, second)


def test_parts_take_another_key() -> None:
    plan, entry = plan_of_shape(40, 10)
    other = InitPlan(plan.entries, Key(7))
    assert torch.equal(
        concatenate(parts(plan, entry, torch.float32, Key(7)), torch.float32),
        concatenate(parts(other, entry, torch.float32), torch.float32),
    )


# --- the files of transformers ----------------------------------------------------------------


@every_pretrained
@every_dtype
@pytest.mark.parametrize("size", ["20KB", "150KB", 10**9])
def test_the_files_are_those_of_save_pretrained(
    build: Build, dtype: torch.dtype | None, size: int | str, tmp_path: Path
) -> None:
    model: Any = deferred_init(build, key=KEY)
    written = save_initialized(model, tmp_path / "ours", size, dtype)
    materialize_module(model, dtype=dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    assert sorted(path.name for path in written) == names
    if size != "150KB":
        assert (checkpoint._INDEX in names) == (size == "20KB")
    for name in names:
        assert without_digest(tmp_path / "ours" / name) == without_digest(tmp_path / "theirs" / name), name


@needs("transformers")
@every_dtype
@pytest.mark.parametrize("size", ["20KB", "5GB"])
@pytest.mark.parametrize("name", ["Llama", "Mixtral", "GPT-2"])
def test_from_pretrained_loads_the_model(
    name: str, dtype: torch.dtype | None, size: str, tmp_path: Path
) -> None:
    import transformers

    model = deferred_init(TRANSFORMERS[name], key=KEY)
    save_initialized(model, tmp_path, size, dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    materialize_module(model, dtype=dtype)
    here, there = tensors(model), tensors(again)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert there[name].dtype == tensor.dtype
        assert torch.equal(bits(there[name]), bits(tensor)), name


@needs("transformers")
def test_a_tensor_that_transformers_cuts_is_never_made_whole() -> None:
    saved = contents_of_module(deferred_init(TRANSFORMERS["Mixtral"], key=KEY), None).tensors
    of_experts = [tensor for tensor in saved if ".experts." in tensor.name]
    assert len(of_experts) == 2 * 4 * 3
    assert len({source for tensor in of_experts for source in tensor.sources}) == 2 * 2
    assert all(tensor.is_in_parts for tensor in of_experts)


@needs("huggingface_hub")
@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=12),
    limit=st.integers(1, 60),
)
def test_the_split_is_that_of_huggingface_hub(sizes: list[tuple[int, int]], limit: int) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    # Tensors with the same second number share a storage. Those with 0 each have their own.
    storages = [storage or f"own {place}" for place, (_, storage) in enumerate(sizes)]
    nbytes = {storage: size for storage, (size, _) in reversed(list(zip(storages, sizes, strict=True)))}
    ours = [
        SavedTensor(f"t{place}", (1,), torch.uint8, {}, storage, nbytes[storage])
        for place, storage in enumerate(storages)
    ]
    theirs = split_state_dict_into_shards_factory(
        {tensor.name: tensor for tensor in ours},
        get_storage_size=lambda tensor: tensor.storage_bytes,
        get_storage_id=lambda tensor: tensor.storage,
        filename_pattern="m{suffix}",
        max_shard_size=limit,
    )
    expected = [sorted(names) for names in theirs.filename_to_tensors.values()]
    assert [sorted(tensor.name for tensor in group) for group in checkpoint._split(ours, limit)] == expected


def test_a_header_is_that_of_safetensors_for_every_dtype(tmp_path: Path) -> None:
    values = {
        f"{place}{name}": torch.zeros(2, 3, dtype=torch.uint8).to(dtype)
        for place, name in enumerate(("b", "a", 'é"\n'))
        for dtype in checkpoint._DTYPES
        for name in (f"{name}.{dtype}",)
    }
    ours = [
        SavedTensor(name, tuple(value.shape), value.dtype, {}, name, value.nbytes)
        for name, value in sorted(values.items(), reverse=True)
    ]
    header = checkpoint._shard("model.safetensors", ours, None).head
    (digest,) = {json.loads(header[8:])["__metadata__"][DIGEST]}
    theirs = safetensors.save(values, metadata={"format": "pt", DIGEST: digest})
    # safetensors writes the two entries of the metadata in random order.
    assert len(theirs) == len(header) + sum(value.nbytes for value in values.values())
    assert list(json.loads(theirs[8 : len(header)]).items()) == list(json.loads(header[8:]).items())
    (tmp_path / "file").write_bytes(header + bytes(sum(value.nbytes for value in values.values())))
    assert safetensors.load_file(tmp_path / "file").keys() == values.keys()


# --- modules and plans -----------------------------------------------------------------------


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in TORCH.items()])
@every_dtype
@pytest.mark.parametrize("size", ["10KB", "5GB"])
def test_a_module_of_torch_loads_what_was_saved(
    build: Build, dtype: torch.dtype | None, size: str, tmp_path: Path
) -> None:
    module = deferred_init(build, key=KEY)
    save_initialized(module, tmp_path, size, dtype)
    assert (tmp_path / checkpoint._INDEX).exists() == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    saved = load_shards(tmp_path)
    again = deferred_init(build, key=Key(1))
    materialize_module(again, dtype=dtype).load_state_dict(saved, strict=True)
    materialize_module(module, dtype=dtype)
    for name, tensor in module.state_dict().items():
        assert torch.equal(bits(again.state_dict()[name]), bits(tensor)), name
        assert saved[name].dtype == tensor.dtype


def test_the_first_of_tied_tensors_is_saved_and_non_persistent_buffers_and_attributes_are_not(
    tmp_path: Path,
) -> None:
    save_initialized(deferred(), tmp_path)
    names = deferred().state_dict().keys() - {"head.weight"}
    assert load_shards(tmp_path).keys() == names
    assert not names & {"rotary", "plain"}
    assert "table.weight" in names


@pytest.mark.parametrize("name", ["Small", *TORCH])
def test_a_plan_alone_gives_the_files_of_its_module(name: str, tmp_path: Path) -> None:
    build = {"Small": Small, **TORCH}[name]
    module = deferred_init(build, key=KEY)
    save_initialized(module, tmp_path / "module", "2KB")
    InitPlan.of(module).save(tmp_path / "plan")
    save_initialized(InitPlan.load(tmp_path / "plan"), tmp_path / "plan alone", "2KB")
    assert contents(tmp_path / "module") == contents(tmp_path / "plan alone")


@needs("transformers")
def test_a_plan_alone_of_a_transformer_has_the_plans_names_and_loads(tmp_path: Path) -> None:
    import transformers

    model: Any = deferred_init(TRANSFORMERS["Mixtral"], key=KEY)
    save_initialized(InitPlan.of(model), tmp_path, config=model.config.to_dict())
    assert load_shards(tmp_path).keys() == dict(model.named_parameters()).keys()
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path)
    materialize_module(model)
    for name, tensor in model.named_parameters():
        assert torch.equal(again.get_parameter(name), tensor), name


CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to bf16": lambda module: module.to(torch.bfloat16),
    "half": lambda module: module.half(),
    "half, then bf16": lambda module: module.half().to(torch.bfloat16),
    "double": lambda module: module.double(),
    "a part of it": lambda module: module.get_submodule("inner").half(),
}


@pytest.mark.parametrize("name", CONVERSIONS)
@every_dtype
def test_conversions_after_the_recording_count(name: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    module, other = deferred(), deferred()
    CONVERSIONS[name](module)
    CONVERSIONS[name](other)
    save_initialized(module, tmp_path, dtype=dtype)
    state = materialize_module(other, dtype=dtype).state_dict()
    for key, tensor in load_shards(tmp_path).items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(bits(tensor), bits(state[key])), key


def test_the_plan_of_a_materialised_module_is_saved_and_not_its_values(tmp_path: Path) -> None:
    module = materialize_module(deferred(), dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        module.inner.weight.zero_()
    save_initialized(module, tmp_path)
    for name, tensor in load_shards(tmp_path).items():
        assert torch.equal(bits(tensor), bits(before[name])), name


def test_a_wrapper_is_looked_through_and_a_part_is_saved_alone(tmp_path: Path) -> None:
    module = deferred()
    save_initialized(module, tmp_path / "plain")
    save_initialized(nn.DataParallel(module), tmp_path / "wrapped")
    assert contents(tmp_path / "plain") == contents(tmp_path / "wrapped")
    save_initialized(module.inner, tmp_path / "part")
    whole = load_shards(tmp_path / "plain")
    for name, tensor in load_shards(tmp_path / "part").items():
        assert torch.equal(tensor, whole[f"inner.{name}"])


def test_a_tie_made_after_the_recording_is_a_tie(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

    module = deferred_init(build, key=KEY)
    module.get_submodule("1").weight = module.get_parameter("0.weight")
    save_initialized(module, tmp_path)
    assert sorted(load_shards(tmp_path)) == ["0.bias", "0.weight", "1.bias"]


def test_another_key_gives_the_files_of_a_plan_of_that_key(tmp_path: Path) -> None:
    save_initialized(deferred(), tmp_path / "given", key=Key(5))
    save_initialized(deferred(Key(5)), tmp_path / "own")
    save_initialized(deferred(), tmp_path / "other")
    assert contents(tmp_path / "given") == contents(tmp_path / "own")
    assert contents(tmp_path / "given") != contents(tmp_path / "other")


def test_draws_from_a_generator_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = deferred(key=None)
    save_initialized(module, tmp_path)
    state = materialize_module(module).state_dict()
    for name, tensor in load_shards(tmp_path).items():
        assert torch.equal(bits(tensor), bits(state[name])), name


def test_saving_materialises_nothing_and_changes_no_number_of_threads(tmp_path: Path) -> None:
    module, threads = deferred(), torch.get_num_threads()
    save_initialized(module, tmp_path)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.get_num_threads() == threads
    in_others: list[int] = []
    thread = threading.Thread(target=lambda: in_others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert in_others == [threads]


def test_parts_are_made_by_one_thread_beside_the_one_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    normal = init.normal_

    def watch(*arguments: Any, **keywords: Any) -> Any:
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return normal(*arguments, **keywords)

    monkeypatch.setattr(init, "normal_", watch)
    save_initialized(plan_of_shape(30, 40)[0], tmp_path)
    assert seen == {(False, 1)}


# --- the configuration -----------------------------------------------------------------------


@needs("transformers")
@every_dtype
def test_the_models_own_configuration_is_written_and_not_changed(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    model: Any = deferred_init(TRANSFORMERS["Llama"], key=KEY)
    model.config.architectures = None
    before = model.config.to_dict()
    save_initialized(model.half(), tmp_path, dtype=dtype)
    assert model.config.to_dict() == before
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == ("float16" if dtype is None else "bfloat16")
    assert (tmp_path / "generation_config.json").exists()


def test_a_configuration_that_is_passed_is_copied(tmp_path: Path) -> None:
    text = '{"torch_dtype": "float32",\n "b": [1, 2]}'
    (tmp_path / "given.json").write_text(text)
    save_initialized(deferred(), tmp_path / "path", config=tmp_path / "given.json")
    assert (tmp_path / "path" / "config.json").read_text() == text
    as_dict = {"torch_dtype": "float32", "b": [1, 2]}
    for name, config in (("a", as_dict), ("b", str(tmp_path / "given.json"))):
        save_initialized(deferred(), tmp_path / name, dtype=torch.float16, config=config)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written == {"dtype": "float16", "b": [1, 2]}
    assert as_dict == {"torch_dtype": "float32", "b": [1, 2]}
    save_initialized(deferred(), tmp_path / "none")
    assert not (tmp_path / "none" / "config.json").exists()


# --- complete files or none ------------------------------------------------------------------

# The size of a shard in bytes: one or two tensors of Small.
SIZE = 300


def test_files_that_are_finished_are_not_written_again(tmp_path: Path) -> None:
    first = save_initialized(deferred(), tmp_path, SIZE, config={"a": 1})
    before = identities(tmp_path)
    assert len(first) > 5
    assert first[-1].name == checkpoint._INDEX
    assert save_initialized(deferred(), tmp_path, SIZE, config={"a": 1}) == first
    assert identities(tmp_path) == before
    # If one file is missing, only that file is written.
    first[1].unlink()
    save_initialized(deferred(), tmp_path, SIZE, config={"a": 1})
    after = identities(tmp_path)
    assert {name for name in before if before[name] != after[name]} <= {first[1].name}
    assert before.keys() == after.keys()


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from paraminit_ext.models import checkpoint
from test_checkpoint import SIZE, contents, deferred, identities

calls, last = 0, -1

def counted(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == last + 1:
            # Write half of the content before the kill.
            if function is write:
                write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

write = os.write
for name in ("write", "fsync", "replace", "unlink", "open"):
    setattr(os, name, counted(getattr(os, name)))

def save(directory):
    return checkpoint.save_initialized(module, directory, SIZE, config={"a": 1})

module, folder = deferred(), Path(sys.argv[1])
# Do not count the files that were opened while modules were imported.
calls = 0
names = [path.name for path in save(folder / "whole")]
whole, most = contents(folder / "whole"), calls
for number in range(most):
    directory = folder / str(number)
    child = os.fork()
    if child == 0:
        calls, last = 0, number
        save(directory)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (number, status)
    finished = {}
    if directory.exists():
        there = {name: content for name, content in contents(directory).items() if name in whole}
        assert all(whole[name] == content for name, content in there.items()), number
        # The files appear in their order, with the index last.
        assert set(there) == set(names[: len(there)]), number
        finished = {name: identity for name, identity in identities(directory).items() if name in whole}
    save(directory)
    assert contents(directory) == whole, number
    after = identities(directory)
    assert all(after[name] == identity for name, identity in finished.items()), number
    shutil.rmtree(directory)
print(most, len(names))
"""


def test_after_a_kill_at_any_moment_the_same_call_gives_the_same_files(tmp_path: Path) -> None:
    (line,) = subprocesses.lines(KILLED, str(tmp_path), PYTHONPATH=str(Path(__file__).parent))
    most, names = map(int, line.split())
    # Each file is opened, written, flushed and renamed. Then its directory is flushed.
    assert most >= 5 * names > 30


class StopError(Exception):
    """Stands for an error in the middle of a call."""


class Writes:
    """Replaces ``os.write`` and counts the calls. One call writes half of its content and then fails."""

    def __init__(self, fails: int = -1, error: BaseException | None = None) -> None:
        self.count = 0
        self._fails, self._error, self._write = fails, error, os.write

    def __call__(self, descriptor: int, content: Any) -> int:
        self.count += 1
        if self._error is not None and self.count == self._fails:
            self._write(descriptor, content[: len(content) // 2])
            raise self._error
        return self._write(descriptor, content)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, None])
def test_an_interrupted_call_leaves_finished_shards_and_no_half_ones(
    share: float, number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", writes := Writes())
        save_initialized(deferred(), tmp_path / "whole", SIZE)
    assert writes.count > 10
    whole = contents(tmp_path / "whole")
    error = KeyboardInterrupt() if number is None else OSError(number, os.strerror(number))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Writes(1 + round(share * (writes.count - 1)), error))
        with pytest.raises(type(error)) as raised:
            save_initialized(deferred(), tmp_path / "ours", SIZE)
    if isinstance(raised.value, OSError):
        assert number is not None
        assert raised.value.errno == number
        assert os.strerror(number) in check_message(raised)
    there = contents(tmp_path / "ours")
    assert all(whole[name] == content for name, content in there.items())
    assert len(there) < len(whole)
    before = identities(tmp_path / "ours")
    save_initialized(deferred(), tmp_path / "ours", SIZE)
    assert contents(tmp_path / "ours") == whole
    assert {name: identities(tmp_path / "ours")[name] for name in before} == before


def test_a_tensor_that_cannot_be_made_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise StopError

    monkeypatch.setattr(init, "normal_", fail)
    with pytest.raises(StopError):
        save_initialized(plan_of_shape(3, 4)[0], tmp_path)
    assert not os.listdir(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_initialized(deferred(), tmp_path, SIZE)
    needed = first[1].stat().st_size
    first[1].unlink()
    before = identities(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        with pytest.raises(OSError, match=f"expected {needed} bytes of free space") as raised:
            save_initialized(deferred(), tmp_path, SIZE)
        assert raised.value.errno == errno.ENOSPC
        check_message(raised)
        assert identities(tmp_path) == before
        # Existing files need no more room.
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
        save_initialized(deferred(), tmp_path, SIZE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to any directory")
def test_a_directory_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(PermissionError) as raised:
        save_initialized(deferred(), tmp_path / "closed")
    check_message(raised)


def test_a_call_that_the_system_does_not_permit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *arguments: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as raised:
        save_initialized(deferred(), tmp_path)
    assert raised.value.errno == errno.EACCES
    assert str(tmp_path) in check_message(raised)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_place_of_a_directory_is_one_line(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError) as raised:
        save_initialized(deferred(), tmp_path / "file" / below)
    assert raised.value.errno == errno.ENOTDIR
    check_message(raised)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "adapter_model.safetensors",
        "config.json",
    ],
)
def test_a_directory_with_another_models_files_is_refused_and_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("another's")
    (tmp_path / "README.md").write_text("more")
    before = identities(tmp_path)
    with pytest.raises(FileExistsError) as raised:
        save_initialized(deferred(), tmp_path, config={"a": 1})
    assert raised.value.errno == errno.EEXIST
    assert name in check_message(raised)
    assert identities(tmp_path) == before


def another_std() -> nn.Module:
    module = nn.Linear(6, 6)
    nn.init.normal_(module.weight, 0.0, 0.3)
    return module


def one_std() -> nn.Module:
    module = nn.Linear(6, 6)
    nn.init.normal_(module.weight, 0.0, 0.2)
    return module


OTHERS: dict[str, Callable[[Path], Any]] = {
    "other steps": lambda path: save_initialized(deferred_init(another_std, key=KEY), path),
    "another key": lambda path: save_initialized(deferred_init(one_std, key=KEY), path, key=Key(1)),
    "another dtype": lambda path: save_initialized(deferred_init(one_std, key=KEY), path, dtype=torch.half),
    "other conversions to the same dtype": lambda path: save_initialized(
        deferred_init(one_std, key=KEY).half().float(), path
    ),
    "another split": lambda path: save_initialized(deferred_init(one_std, key=KEY), path, 100),
    "another model": lambda path: save_initialized(deferred(), path),
}


@pytest.mark.parametrize("name", OTHERS)
def test_shards_of_another_plan_are_refused_and_kept(name: str, tmp_path: Path) -> None:
    save_initialized(deferred_init(one_std, key=KEY), tmp_path)
    before = identities(tmp_path)
    with pytest.raises(FileExistsError) as raised:
        OTHERS[name](tmp_path)
    check_message(raised)
    assert identities(tmp_path) == before


def test_another_version_of_the_stream_is_another_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_initialized(deferred(), tmp_path)
    monkeypatch.setattr("paraminit_ext.STREAM_VERSION", 99)
    with pytest.raises(FileExistsError):
        save_initialized(deferred(), tmp_path)


def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    (path,) = save_initialized(deferred(), tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FileExistsError):
        save_initialized(deferred(), tmp_path)


def test_values_that_a_plan_has_recorded_are_in_the_digest(tmp_path: Path) -> None:
    def build(value: float) -> nn.Module:
        module = nn.Module()
        module.register_buffer("value", torch.tensor([value, 1.0]))
        return module

    save_initialized(deferred_init(build, 2.0), tmp_path)
    save_initialized(deferred_init(build, 2.0), tmp_path)
    with pytest.raises(FileExistsError):
        save_initialized(deferred_init(build, 3.0), tmp_path)


def test_a_second_process_is_refused_and_the_first_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.write, []

    def call(descriptor: int, content: Any) -> int:
        # When the first call writes the header of a file, make the second call.
        if bytes(content[8:10]) == b'{"':
            with pytest.raises(BlockingIOError) as raised:
                save_initialized(deferred(), tmp_path / "ours", SIZE)
            refused.append(check_message(raised))
        return write(descriptor, content)

    save_initialized(deferred(), tmp_path / "whole", SIZE)
    monkeypatch.setattr(os, "write", call)
    save_initialized(deferred(), tmp_path / "ours", SIZE)
    assert len(refused) > 3
    assert contents(tmp_path / "ours") == contents(tmp_path / "whole")


def test_a_held_lock_is_refused_without_waiting_and_a_stale_lock_file_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / checkpoint._LOCK
    partial = tmp_path / f".model.safetensors{checkpoint._PARTIAL}"
    for stale in (path, partial):
        stale.write_bytes(b"half")
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            save_initialized(deferred(), tmp_path)
        assert partial.exists()
    save_initialized(deferred(), tmp_path)
    assert os.listdir(tmp_path) == ["model.safetensors"]


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (7, 7),
        ("5GB", 5 * 10**9),
        ("200MB", 2 * 10**8),
        ("1GiB", 2**30),
        (" 1.5 kb ", 1500),
        ("2TiB", 2**41),
        ("3tb", 3 * 10**12),
    ],
)
def test_sizes_are_numbers_or_texts(text: int | str, expected: int) -> None:
    assert checkpoint._size_of(text) == expected


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        ("5", ValueError),
        ("GB", ValueError),
        ("5PB", ValueError),
        ("-5GB", ValueError),
        ("0.0001KB", ValueError),
        (5.0, TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_an_invalid_size_is_one_line(size: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error) as raised:
        save_initialized(deferred(), tmp_path / "new", size)
    assert "max_shard_size" in check_message(raised)
    assert not (tmp_path / "new").exists()


class Unfilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(2, 2)
        self.left = nn.Parameter(torch.empty(3))


def written_after_recording() -> nn.Module:
    module = deferred()
    with torch.no_grad():
        module.inner.weight.zero_()
    return module


def replaced_after_recording() -> nn.Module:
    module = deferred()
    module.extra = nn.Linear(2, 2)
    return module


def resized_after_recording() -> nn.Module:
    module = materialize_module(deferred())
    module.inner.weight = nn.Parameter(torch.zeros(2, 2))
    return module


def with_complex_parameter() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    return module


WRONG: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no module": (lambda path: save_initialized(3, path), TypeError, "InitPlan, got int"),  # type: ignore[arg-type]
    "no path": (lambda _: save_initialized(deferred(), 3), TypeError, "directory, got int"),  # type: ignore[arg-type]
    "no dtype": (
        lambda path: save_initialized(deferred(), path, dtype=torch.int8),
        TypeError,
        "floating-point dtype, got torch.int8",
    ),
    "no key": (
        lambda path: save_initialized(deferred(), path, key=3),  # type: ignore[arg-type]
        TypeError,
        "for key, got int",
    ),
    "no configuration": (
        lambda path: save_initialized(deferred(), path, config=3),  # type: ignore[arg-type]
        TypeError,
        "for config, got int",
    ),
    "a configuration that is no JSON": (
        lambda path: save_initialized(deferred(), path, config={"a": object()}),
        TypeError,
        "JSON can hold",
    ),
    "a configuration that is not there": (
        lambda path: save_initialized(deferred(), path, config="nowhere.json"),
        FileNotFoundError,
        "nowhere.json",
    ),
    "a file that is no configuration": (
        lambda path: save_initialized(deferred(), path, config=__file__),
        ValueError,
        "a JSON object",
    ),
    "a module without a plan": (
        lambda path: save_initialized(nn.Linear(2, 2), path),
        ValueError,
        "a Linear without a plan",
    ),
    "a layer without a plan": (
        lambda path: save_initialized(replaced_after_recording(), path),
        ValueError,
        "extra.weight without a plan",
    ),
    "a parameter of another shape": (
        lambda path: save_initialized(resized_after_recording(), path),
        ValueError,
        r"expected shape \(24, 16\) for inner.weight, got \(2, 2\)",
    ),
    "a parameter that was written": (
        lambda path: save_initialized(written_after_recording(), path),
        ValueError,
        "inner.weight as it was recorded",
    ),
    "a parameter that was left": (
        lambda path: save_initialized(deferred_init(Unfilled), path),
        ValueError,
        "left, which the model left as it was allocated",
    ),
    "nothing to save": (lambda path: save_initialized(InitPlan({}), path), ValueError, "none to save"),
    "a dtype that files do not have": (
        lambda path: save_initialized(deferred_init(with_complex_parameter), path),
        TypeError,
        "torch.complex128 for weight",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_before_anything_is_written(name: str, tmp_path: Path) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message) as raised:
        call(tmp_path / "new")
    check_message(raised)
    assert not (tmp_path / "new").exists()


# --- memory, imports and progress ------------------------------------------------------------

MEMORY = """
import sys, tempfile
import torch
from torch import nn
from paraminit_ext import Key, deferred_init, save_initialized

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

def build(width, rows=16):
    layers = (nn.Linear(width, width, bias=False) for _ in range(8))
    return nn.Sequential(*layers, nn.Embedding(rows, width, 3))

with tempfile.TemporaryDirectory() as folder:
    save_initialized(deferred_init(build, 1100, key=Key(1)), folder + "/small", "10MB")
    before = peak()
    files = save_initialized(deferred_init(build, 2560, 10000, key=Key(1)), folder + "/large", "80MB")
    print(len(files), sum(file.stat().st_size for file in files), peak() - before)
"""


def test_memory_does_not_grow_with_the_model_its_tensors_or_its_shards() -> None:
    # The model has 8 tensors of 26 MB, and one of 102 MB with a row of zeros. Saving holds two parts of
    # 2^19 elements, 4 MiB. The small model has tensors of more than one part, so it already allocates them.
    (line,) = subprocesses.lines(MEMORY)
    number, size, grown = map(int, line.split())
    assert number == 5
    assert size > 3.1e8
    assert grown < 16 << 20


def test_saving_imports_no_optional_package(tmp_path: Path) -> None:
    program = (
        "import sys, torch\nfrom paraminit_ext import Key, deferred_init, save_initialized\n"
        "save_initialized(deferred_init(torch.nn.Linear, 3, 4, key=Key(1)), sys.argv[1])\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    (line,) = subprocesses.lines(program, str(tmp_path))
    assert "paraminit_ext" in line.split()
    assert not set(line.split()) & {"safetensors", "transformers", "huggingface_hub", "rich"}


@needs("rich")
def test_progress_says_bytes_on_the_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = save_initialized(plan_of_shape(300, 100)[0], tmp_path / "shown", progress=True)
    shown = capsys.readouterr()
    assert not shown.out
    size = sum(path.stat().st_size for path in written)
    assert f"{size / 1000:.1f}/{size / 1000:.1f} kB" in shown.err
    for progress in (None, False):
        save_initialized(plan_of_shape(300, 100)[0], tmp_path / str(progress), progress=progress)
        assert capsys.readouterr() == ("", "")


def test_progress_without_rich_is_one_line_if_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(ModuleNotFoundError, match="Run `pip install rich`") as raised:
        save_initialized(deferred(), tmp_path / "new", progress=True)
    check_message(raised)
    assert not (tmp_path / "new").exists()
    save_initialized(deferred(), tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]


# --- other checkpoints -----------------------------------------------------------------------


def test_torchs_distributed_checkpoint_of_the_plan_has_the_same_tensors(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    module = deferred()
    save_initialized(module, tmp_path / "ours", SIZE)
    built = InitPlan.of(module).apply(Small())
    save(built.state_dict(), checkpoint_id=tmp_path / "theirs", no_dist=True)
    state = {name: torch.full_like(tensor, 7) for name, tensor in built.state_dict().items()}
    load(state, checkpoint_id=tmp_path / "theirs", no_dist=True)
    ours = load_shards(tmp_path / "ours")
    assert ours.keys() == state.keys() - {"head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(bits(tensor), bits(state[name])), name
