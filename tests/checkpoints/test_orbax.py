"""Orbax checkpoints, written by Orbax itself, against the arrays that went in and the same ones as safetensors."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from precisionlab.checkpoints import CheckpointError, compare, forecast, read_checkpoint, stored
from tests.checkpoints.test_reading_and_comparing import DTYPES, refused, run, save, strict, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LAYOUTS = {f"{'ocdbt' if ocdbt else 'plain'} zarr{3 if three else 2}": (ocdbt, three) for ocdbt in (1, 0) for three in (0, 1)}
KINDS = [kind for kind in DTYPES if kind != "F64"]  # float64 goes in as numpy's


def write(folder: Path, tree: Any, layout: str = "ocdbt zarr2", **keywords: Any) -> Path:
    ocdbt, three = LAYOUTS[layout]
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=bool(ocdbt), use_zarr3=bool(three))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree, **keywords))
    return folder


def manage(root: Path, trees: Mapping[int, Any], **options: Any) -> Path:
    with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step, tree in trees.items():
            args = ocp.args.Composite(**tree) if "params" in tree or "left" in tree else ocp.args.StandardSave(tree)
            manager.save(step, args=args)
        manager.wait_until_finished()
    return root


def chunked(folder: Path, array: np.ndarray, chunk: tuple[int, ...], name: str = "w") -> Path:
    """An array in chunks as a mesh of devices leaves them; one process has no such mesh."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"},
        "metadata": {"chunks": chunk, "compressor": {"id": "zstd", "level": 1}},
    }
    ts.open(spec, create=True, dtype=ts.dtype(array.dtype), shape=array.shape).result().write(array).result()
    return folder


def entries(tensor: Any, how: str = "pieces") -> np.ndarray:
    return np.concatenate([np.zeros(0, tensor.dtype), *getattr(tensor, how)()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", 100)
    tree = {kind: jnp.asarray(weights(DTYPES[kind], 3000).reshape(3, -1)) for kind in KINDS} | {
        "F64": weights(np.float64, 3000)
    }
    held = read_checkpoint(write(tmp_path / "c", tree, layout))
    assert set(held.tensors) == set(DTYPES)
    for kind, dtype in DTYPES.items():
        tensor = held.tensors[kind]
        assert (tensor.dtype, tensor.shape) == (np.dtype(dtype), (3000,) if kind == "F64" else (3, 1000))
        assert entries(tensor).tobytes() == weights(dtype, 3000).tobytes()
        assert [len(piece) for piece in tensor.pieces()] == [100] * 30


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_scalars_and_what_is_no_tensor_of_floats(tmp_path: Path, layout: str) -> None:
    tree = {
        "layers": [{"w": jnp.ones((2, 2))} for _ in range(11)],
        "linear/~/out": {"b": jnp.zeros(2)},
        "scale": 2.5,
        "step": 7,
        "ids": jnp.arange(3),
        "mask": jnp.ones(2, bool),
        "fine": jnp.ones(2, ml_dtypes.float8_e8m0fnu),
        "complex": jnp.ones(2, jnp.complex64),
        "label": "words",
        "none": None,
        "empty": {},
        "opt_state": ({"mu": {"w": jnp.ones(2)}}, {"nu": {"w": jnp.ones(2)}}),
    }
    held = read_checkpoint(write(tmp_path / "c", tree, layout))
    assert list(held.tensors) == [*(f"layers.{i}.w" for i in range(11)), "linear/~/out.b", "scale"]
    assert held.tensors["scale"].shape == ()
    assert entries(held.tensors["scale"]).tolist() == [2.5]
    assert entries(held.tensors["linear/~/out.b"]).tolist() == [0, 0]
    assert held.skipped == {
        "complex": "complex64, not floating point" if "3" in layout else "c8, not floating point",
        "fine": f"float8_e8m0fnu, not among {', '.join(np.dtype(kind).name for kind in DTYPES.values())}",
        "ids": "int32, not floating point" if "3" in layout else "i4, not floating point",
        "label": "string, not a tensor",
        "mask": "bool, not floating point" if "3" in layout else "b1, not floating point",
        "none": "None, not a tensor",
        "opt_state": "the optimizer's state, not weights",
        "step": "int64, not floating point" if "3" in layout else "i8, not floating point",
    }


@pytest.mark.parametrize("chunk", [(7, 5, 11), (1, 5, 4), (3, 2, 11), (1, 1, 11), (2, 5, 11), (1, 1, 3)])
@pytest.mark.parametrize("piece", [1, 16, 60, 1000])
def test_chunks_in_the_order_of_c(tmp_path: Path, chunk: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", piece)
    array = np.arange(7 * 5 * 11, dtype=np.float32).reshape(7, 5, 11)
    tensor = read_checkpoint(chunked(tmp_path, array, chunk)).tensors["w"]
    np.testing.assert_array_equal(entries(tensor), array.ravel())
    lengths = [len(part) for part in tensor.pieces()]
    assert all(length == piece for length in lengths[:-1])
    if chunk == (1, 5, 4):  # chunks side by side are read together, which is the order of C
        assert (tensor.blocks is None) == (piece >= 55)
    if tensor.blocks:
        np.testing.assert_array_equal(np.sort(entries(tensor, "blocks")), array.ravel())
        assert max(len(part) for part in tensor.blocks()) <= piece


def test_order_does_not_matter_to_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", 64)
    old = weights(ml_dtypes.bfloat16, 3000).reshape(20, 30, 5)
    new = old.copy()
    new.view(np.uint16)[::3, 4:, 1:4] += 1
    files = [save(tmp_path / f"{name}.safetensors", w=array) for name, array in (("old", old), ("new", new))]
    for chunk, other in (((20, 10, 5), (20, 10, 5)), ((20, 10, 5), (5, 30, 2)), ((3, 30, 5), (20, 1, 1))):
        a = chunked(tmp_path / f"a{chunk}{other}", old, chunk)
        b = chunked(tmp_path / f"b{chunk}{other}", new, other)
        assert repr(forecast(a, 1e-4)["rows"]) == repr(forecast(files[0], 1e-4)["rows"])
        for one, two in ((a, b), (a, files[1]), (files[0], b)):
            assert repr(compare(one, two)["rows"]) == repr(compare(*files)["rows"])


def test_orbax_beside_safetensors(tmp_path: Path) -> None:
    array = weights(ml_dtypes.bfloat16)
    a = write(tmp_path / "a", {"layer": {"w": jnp.asarray(array)}, "gone": jnp.ones(2)})
    b = save(tmp_path / "b.safetensors", **{"layer.w": array, "new": array})
    found = strict(run("compare", a, b, "--json"))
    assert found["unmoved"] == ["layer.w"]
    assert (found["only_in_a"], found["only_in_b"], found["choices"]) == (["gone"], ["new"], [])
    rows = strict(run("forecast", a, "--lr", "1e-4", "--json"))["rows"]
    assert rows[2:] == strict(run("forecast", b, "--lr", "1e-4", "--json"))["rows"][:2]


@pytest.mark.parametrize("options", [{}, {"step_prefix": "ckpt"}, {"step_format_fixed_length": 8}])
def test_a_manager_s_newest_step_is_read_and_said(tmp_path: Path, options: dict[str, Any]) -> None:
    root = manage(tmp_path / "run", {step: {"w": jnp.full(4, float(step))} for step in (2, 9, 10)}, **options)
    (root / "11.orbax-checkpoint-tmp").mkdir()
    held = read_checkpoint(root)
    assert entries(held.tensors["w"]).tolist() == [10] * 4
    chosen = Path(held.path)
    assert (chosen.name, chosen.parent.parent) == ("default", root)
    assert held.choice == f"{root}: read {chosen}, the newest of its steps (2, 9, 10)."
    said = run("forecast", root, "--lr", "1e-5")
    assert (said.exit_code, said.stderr) == (0, f"{held.choice}\n")
    older = next(step for step in root.iterdir() if step.name.endswith("9"))
    for path in (older, older / "default"):
        assert entries(read_checkpoint(path).tensors["w"]).tolist() == [9] * 4
    assert read_checkpoint(older).choice == ""
    found = strict(run("compare", older, root, "--json"))
    assert (found["a"], found["b"]) == (str(older / "default"), str(chosen))
    assert found["choices"] == [held.choice]
    assert "is an Orbax checkpoint" not in run("compare", older, root).stderr
    assert held.choice in run("compare", older, root).stderr


def test_items_of_a_step(tmp_path: Path) -> None:
    one, two = ocp.args.StandardSave({"w": jnp.ones(2)}), ocp.args.StandardSave({"v": jnp.ones(2)})
    step = manage(tmp_path / "a", {3: {"params": one, "moments": two, "meta": ocp.args.JsonSave({"a": 1})}}) / "3"
    held = read_checkpoint(step)
    assert list(held.tensors) == ["w"]
    assert held.choice == f"{step}: read {step / 'params'}, of the items moments, params."
    assert list(read_checkpoint(step / "moments").tensors) == ["v"]
    step = manage(tmp_path / "b", {3: {"left": one, "right": two}}) / "3"
    assert f"{step} holds 2 items (left, right); name one of these folders." in refused(run("forecast", step, "--lr", 1))
    step = manage(tmp_path / "c", {3: {"params": one, "only": ocp.args.JsonSave({})}}) / "3"
    shutil.rmtree(step / "params")
    assert "is an Orbax checkpoint without any arrays" in refused(run("forecast", step, "--lr", 1))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _header(folder: Path, **changed: Any) -> None:
    path = folder / "layer.w" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed))


BROKEN: dict[str, tuple[str, Any, str]] = {
    "no array": (
        "plain zarr2",
        lambda f: shutil.rmtree(f / "layer.w"),
        'is incomplete: it lacks "layer.w", which its _METADATA',
    ),
    "no chunk": (
        "plain zarr2",
        lambda f: (f / "layer.w" / "0").unlink(),
        '"layer.w" is truncated or damaged (chunk {0} stored',
    ),
    "chunk cut": ("plain zarr2", lambda f: _cut(f / "layer.w" / "0"), '"layer.w" is truncated or damaged (Error reading'),
    "chunk empty": (
        "plain zarr3",
        lambda f: (f / "layer.w" / "c" / "0").write_bytes(b""),
        '"layer.w" is truncated or damaged (',
    ),
    "no chunk 3": ("plain zarr3", lambda f: (f / "layer.w" / "c" / "0").unlink(), '"layer.w" is truncated or damaged ('),
    "header cut": ("plain zarr2", lambda f: _cut(f / "layer.w" / ".zarray"), 'the header of "layer.w" names no dtype'),
    "header empty": (
        "plain zarr3",
        lambda f: (f / "layer.w" / "zarr.json").write_text("[]"),
        'header of "layer.w" names no dtype',
    ),
    "no shape": ("plain zarr2", lambda f: _header(f, shape="x"), "is truncated or damaged (Error opening"),
    "huge chunk": (
        "plain zarr2",
        lambda f: _header(f, shape=[1 << 40], chunks=[1 << 40]),
        "which are read as a whole and allowed",
    ),
    "escapes": ("plain zarr2", lambda f: (f / "layer.w").rename(f / "\x1b[2J"), r"names a tensor or dtype '\x1b[2J'"),
    "dtype escapes": ("plain zarr2", lambda f: _header(f, dtype="\x1b"), r"names a tensor or dtype '\x1b'"),
    "record cut": (
        "plain zarr2",
        lambda f: _cut(f / "_METADATA"),
        "_METADATA is truncated or damaged: it must list the leaves",
    ),
    "record a list": ("ocdbt zarr2", lambda f: (f / "_METADATA").write_text("[]"), "_METADATA is truncated or damaged"),
    "record escapes": (
        "ocdbt zarr2",
        lambda f: (f / "_METADATA").write_text((f / "_METADATA").read_text().replace('"key": "layer"', '"key": "\\u001b"')),
        r"names a tensor or dtype '\x1b.w'",
    ),
    "no manifest": (
        "ocdbt zarr2",
        lambda f: (f / "manifest.ocdbt").unlink(),
        "was never finished or is incomplete: it lacks manifest",
    ),
    "manifest cut": ("ocdbt zarr2", lambda f: _cut(f / "manifest.ocdbt"), "is truncated or damaged ("),
    "manifest else": ("ocdbt zarr2", lambda f: (f / "manifest.ocdbt").write_bytes(b"hello"), "is truncated or damaged ("),
    "no database": ("ocdbt zarr3", lambda f: shutil.rmtree(f / "d"), "is truncated or damaged ("),
    "data lost": ("ocdbt zarr3", lambda f: shutil.rmtree(f / "ocdbt.process_0"), "is truncated or damaged ("),
    "unknown dtype": ("plain zarr2", lambda f: _header(f, dtype="<f3"), "holds no tensor of floats (layer.w: f3, not"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_one_sentence(tmp_path: Path, case: str) -> None:
    layout, damage, words = BROKEN[case]
    array = weights(np.float32)
    folder, fine = write(tmp_path / "c", {"layer": {"w": jnp.asarray(array)}}, layout), tmp_path / "fine.safetensors"
    save(fine, **{"layer.w": array})
    assert compare(folder, fine)["unmoved"] == ["layer.w"]
    damage(folder)
    for verb in (["forecast", folder, "--lr", "1e-5"], ["compare", folder, fine], ["compare", fine, folder]):
        sentence = refused(run(*verb))
        assert words in sentence
        assert "tensorstore_spec" not in sentence
        assert sentence.endswith(".")


def test_folders_that_are_neither(tmp_path: Path) -> None:
    assert "holds no checkpoint; allowed are" in refused(run("forecast", tmp_path, "--lr", 1))
    (tmp_path / "1000").mkdir()
    (tmp_path / "1000" / "note.txt").write_text("nothing")
    assert "holds no checkpoint; allowed are" in refused(run("forecast", tmp_path, "--lr", 1))
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    assert "holds no checkpoint that was finished" in refused(run("forecast", tmp_path, "--lr", 1))
    assert "was never finished" in refused(run("forecast", tmp_path / "7.orbax-checkpoint-tmp", "--lr", 1))
    empty = write(tmp_path / "empty", {"none": None})
    assert "holds no tensor of floats (none: None, not a tensor)" in refused(run("forecast", empty, "--lr", 1))
    (empty / "_METADATA").unlink()
    assert "is an Orbax checkpoint without any arrays" in refused(run("forecast", empty, "--lr", 1))


def test_zeros_left_out_are_zeros_where_orbax_says_so(tmp_path: Path) -> None:
    """Before it wrote every chunk, Orbax left out those that held the fill value, and its record does not say otherwise."""
    folder = write(tmp_path / "c", {"w": jnp.zeros(4)}, "plain zarr2")
    record = json.loads((folder / "_METADATA").read_bytes())
    assert record.pop("store_array_data_equal_to_fill_value") is True
    (folder / "_METADATA").write_text(json.dumps(record))
    (folder / "w" / "0").unlink()
    assert entries(read_checkpoint(folder).tensors["w"]).tolist() == [0] * 4


def test_without_tensorstore_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "c", {"w": jnp.ones(4)})
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(
        CheckpointError, match=r"tensorstore, which reads it, is not installed; run pip install 'precisionlab\[orbax\]'"
    ):
        read_checkpoint(folder)
