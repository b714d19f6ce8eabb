"""Other people's checkpoints, written here byte by byte, against counts that numpy and ml_dtypes make again."""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result

from precisionlab.checkpoints import CheckpointError, compare, forecast, read_checkpoint, stored
from precisionlab.cli.main import cli
from precisionlab.cli.terminal import Failure
from precisionlab.numerics.formats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E8M0FNU, FLOAT16, FLOAT32, FORMATS
from precisionlab.stagnation.landing import expected_lost_fraction

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()} | {np.dtype(np.int64): "I64", np.dtype(bool): "BOOL"}
SAFE = sorted(name for name, fmt in FORMATS.items() if fmt.precision <= 11 and fmt.zeros)


def safetensors(tensors: Mapping[str, np.ndarray], **changed: Any) -> bytes:
    """The bytes of a file; `changed` replaces entries of the header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header | changed).encode()
    return struct.pack("<Q", len(text)) + text + data


def save(path: Path, **tensors: np.ndarray) -> Path:
    path.write_bytes(safetensors(tensors))
    return path


def weights(dtype: Any, n: int = 3001, seed: int = 0) -> np.ndarray:
    """Gaussian weights, powers of two, zeros of both signs and the smallest numbers."""
    drawn = 0.05 * np.random.default_rng(seed).standard_normal(n)
    drawn[:40] = np.ldexp(1.0, np.arange(-26, 14) // 2) * np.where(np.arange(40) % 2, 1, -1)
    drawn[40:42] = 0.0, -0.0
    with np.errstate(over="ignore"):
        array = drawn.astype(dtype)
    array[42:44] = np.array([1, 2], f"u{array.itemsize}").view(array.dtype)
    return array


# Reading


@pytest.mark.parametrize("kind", DTYPES)
def test_safetensors_hold_the_bytes_written(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", 100)
    array = weights(DTYPES[kind])
    held = read_checkpoint(save(tmp_path / "m.safetensors", odd=np.array([True]), w=array.reshape(1, -1), scalar=array[0]))
    assert held.skipped == {"odd": "BOOL, not floating point"}
    assert {name: stored.shape for name, stored in held.tensors.items()} == {"w": (1, 3001), "scalar": ()}
    pieces = list(held.tensors["w"].pieces())
    assert [len(piece) for piece in pieces] == [100] * 30 + [1]
    assert np.concatenate(pieces).tobytes() == array.tobytes()
    assert np.concatenate(pieces).dtype == array.dtype


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_npz_hold_the_numbers_written(tmp_path: Path, save_npz: Callable[..., None], dtype: Any) -> None:
    array = weights(np.float32, 3000).astype(dtype).reshape(30, 100)
    save_npz(tmp_path / "m.npz", w=array, columns=np.asfortranarray(array), step=np.array(3), none=np.zeros((0, 3), np.float32))
    held = read_checkpoint(tmp_path)
    assert held.skipped == {"step": "int64, not floating point"}
    for name in ("w", "columns"):
        (piece,) = held.tensors[name].pieces()
        assert piece.dtype == array.dtype.newbyteorder("=")
        assert piece.tobytes() == array.astype(piece.dtype).tobytes()
    assert not list(held.tensors["none"].pieces())


def test_a_folder_of_shards_is_one_checkpoint(tmp_path: Path) -> None:
    one, two = weights(np.float32), weights(ml_dtypes.bfloat16)
    save(tmp_path / "a.safetensors", one=one, ids=np.arange(3))
    save(tmp_path / "b.safetensors", two=two, other=two)
    places = {"one": "a.safetensors", "ids": "a.safetensors", "two": "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (tmp_path, index):
        held = read_checkpoint(path)
        assert list(held.tensors) == ["one", "two"]
        assert held.skipped == {"ids": "I64, not floating point"}
        assert b"".join(piece.tobytes() for piece in held.tensors["two"].pieces()) == two.tobytes()
    index.write_text(json.dumps({"weight_map": places | {"three": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r'says that "three" is in b.safetensors, which lacks it'):
        read_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"three": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="must map each tensor to a file beside it"):
        read_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"three": "c.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"c.safetensors cannot be read \(no such file or directory\)"):
        read_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(a.safetensors, b.safetensors\); name one"):
        read_checkpoint(tmp_path)


_ONE = {"w": np.ones(4, np.float32)}
_ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
BROKEN = {
    "empty": (b"", "its header does not fit its 0 bytes"),
    "header cut": (safetensors(_ONE)[:20], "its header does not fit its 20 bytes"),
    "data cut": (safetensors(_ONE)[:-1], 'is truncated: "w" ends at byte'),
    "no json": (struct.pack("<Q", 4) + b"{{{{", "its header is not a JSON object"),
    "a list": (struct.pack("<Q", 2) + b"[]", "its header is not a JSON object"),
    "not utf-8": (struct.pack("<Q", 2) + b"\xff\xff", "its header is not a JSON object"),
    "no dtype": (safetensors(_ONE, w={"shape": [4]}), 'the header of "w" is damaged'),
    "not a dict": (safetensors(_ONE, w=3), 'the header of "w" is damaged'),
    "negative": (safetensors(_ONE, w=_ENTRY | {"shape": [-4]}), 'the header of "w" is damaged'),
    "backwards": (safetensors(_ONE, w=_ENTRY | {"data_offsets": [16, 0]}), 'the header of "w" is damaged'),
    "wrong size": (safetensors(_ONE, w=_ENTRY | {"shape": [3]}), '"w" has 16 bytes, F32 of shape (3,) has 12'),
    "unknown dtype": (safetensors(_ONE, w=_ENTRY | {"dtype": "F6"}), "no tensor of floats (w: F6, not among F64, F32"),
    "only integers": (safetensors({"i": np.arange(3)}), "no tensor of floats (i: I64, not floating point)"),
    "escapes": (safetensors({"\x1b[2J\ud800": np.ones(1, np.float32)}), r"names a tensor or dtype '\x1b[2J\ud800'"),
    "nothing": (safetensors({}), "holds no tensor of floats; name"),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """The sentence of a request that was wrong; `main` prints it (test_cli)."""
    assert isinstance(result.exception, Failure), result
    assert result.exception.status == 2
    assert result.stdout == ""
    text = str(result.exception)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_sentence(tmp_path: Path, case: str) -> None:
    path, fine = tmp_path / "m.safetensors", save(tmp_path / "fine.safetensors", **_ONE)
    raw, words = BROKEN[case]
    path.write_bytes(raw)
    for verb in (["forecast", path, "--lr", "1e-5"], ["compare", path, fine], ["compare", fine, path]):
        assert words in refused(run(*verb))


def test_zip_files_that_are_broken_or_pickles(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez_compressed(path, w=weights(np.float32))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "is truncated or damaged" in refused(run("forecast", path, "--lr", 1))
    path.write_bytes(raw[:3000] + bytes(100) + raw[3100:])
    assert "is truncated or damaged" in refused(run("forecast", path, "--lr", 1))
    for header in (b"{", b"{'descr': '<f4'}", b"{'descr': 'what', 'fortran_order': False, 'shape': (3,)}", b"[]", b"\x00" * 9):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        assert "is truncated or damaged" in refused(run("forecast", path, "--lr", 1)), header
    np.savez(path, w=np.array([{}], object), f=np.ones(2, np.float32))
    assert read_checkpoint(path).skipped == {"w": "object, not floating point"}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "pickles (.pt, .bin) are never loaded" in refused(run("forecast", tmp_path / "m.pt", "--lr", 1))
    (tmp_path / "old.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "looks like a pickle, which is never loaded" in refused(run("forecast", tmp_path / "old.bin", "--lr", 1))


def test_raw_bytes_of_numpy_are_skipped(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(2, ml_dtypes.float8_e4m3fn), v=np.ones(2, np.float32))
    assert list(read_checkpoint(tmp_path).tensors) == ["v"]
    assert "raw bytes whose format numpy did not keep" in read_checkpoint(tmp_path).skipped["w"]


# Forecast


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", DTYPES)
def test_forecast_agrees_with_expected_lost_fraction(tmp_path: Path, kind: str) -> None:
    array = weights(DTYPES[kind])
    path = save(tmp_path / "m.safetensors", w=array)
    names = SAFE if kind == "F32" else ["bfloat16", "float8_e4m3fn"]
    formats = [FORMATS[name] for name in names]
    w: Any = array.astype(np.float32)  # drawn so that no float64 lies where float32 on the way would round twice
    for size in (1e-5, 2.0**-9) if kind != "F32" else (3e-4,):
        rows = forecast(path, size, formats=formats)["rows"]
        assert [row["format"] for row in rows] == names
        for row, fmt in zip(rows, formats, strict=True):
            assert row["lost_fraction"] == pytest.approx(float(expected_lost_fraction(w, size, fmt)), abs=1e-7), fmt
            assert (row["entries"], row["nonfinite"]) == (3001, 0)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kind", DTYPES)
def test_forecast_agrees_with_applying_each_update(tmp_path: Path, kind: str, name: str) -> None:
    """Both signs, added in float64 (exact here) and rounded by ml_dtypes through an odd float32."""
    array, target = weights(DTYPES[kind]), getattr(ml_dtypes, name, np.float16)
    path = save(tmp_path / "m.safetensors", w=array)

    def rounded(x: np.ndarray) -> np.ndarray:
        near = x.astype(np.float32)
        bits = near.view(np.int32) - (np.abs(near.astype(np.float64)) > np.abs(x))
        return (bits | (near != x)).astype(np.int32).view(np.float32).astype(target)

    stored = rounded(array.astype(np.float64))
    for size in map(np.float32, (1e-5, 3e-4, 2.0**-9, 0.05)):
        kept = [rounded(stored.astype(np.float64) + u) == stored for u in (float(size), -float(size))]
        (row,) = forecast(path, float(size), formats=[FORMATS[name]])["rows"]
        assert row["lost_fraction"] == np.mean(kept)


@pytest.mark.parametrize(("kind", "bits"), [("F32", 23), ("F64", 40), ("F64", 52)])
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_beside_a_tie_are_rounded_once(tmp_path: Path, kind: str, bits: int, sign: int) -> None:
    """1 + 2^-8 lies halfway to 1 + 2^-7, which an update of 2^-8 moves both ways, while 1 keeps it upwards."""
    for beside, lost in ((-(2.0**-bits), 0.5), (0.0, 0.5), (2.0**-bits, 0.0)):
        w = np.array([sign * (1 + 2.0**-8 + beside)], DTYPES[kind])
        (row,) = forecast(save(tmp_path / "m.safetensors", w=w), 2.0**-8, formats=[BFLOAT16])["rows"]
        assert row["lost_fraction"] == lost


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, FLOAT8_E4M3FN])
def test_half_of_the_updates_land_from_there(tmp_path: Path, fmt: Any) -> None:
    array = weights(np.float32)
    path = save(tmp_path / "m.safetensors", w=array)
    (row,) = forecast(path, 1e-5, formats=[fmt])["rows"]
    there = np.float32(row["half_lands_lr"])
    assert float(there) == row["half_lands_lr"]
    assert float(expected_lost_fraction(array, float(there), fmt)) <= 0.5
    assert float(expected_lost_fraction(array, float(np.nextafter(there, np.float32(0))), fmt)) > 0.5
    (row,) = forecast(path, 1e-2, update_size=1e-5, formats=[fmt])["rows"]
    assert row["half_lands_lr"] == pytest.approx(1e3 * float(there), rel=1e-12)


def test_totals_count_every_tensor(tmp_path: Path) -> None:
    parts = {kind: weights(dtype, 500 + i, i) for i, (kind, dtype) in enumerate(DTYPES.items())}
    found = forecast(save(tmp_path / "m.safetensors", none=np.zeros((3, 0), np.float32), **parts), 1e-4)
    for total in found["totals"]:
        rows = [row for row in found["rows"] if row["format"] == total["format"]]
        assert [row["tensor"] for row in rows] == ["none", *parts]
        assert total["tensor"] == "total"
        assert total["entries"] == sum(len(part) for part in parts.values())
        lost = sum(row["lost_fraction"] * row["entries"] for row in rows[1:])
        assert total["lost_fraction"] == pytest.approx(lost / total["entries"], rel=1e-12)
        assert math.isnan(rows[0]["lost_fraction"])
        assert math.isnan(rows[0]["half_lands_lr"])


def test_one_piece_or_many_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {kind: weights(dtype, 40_000) for kind, dtype in DTYPES.items()}
    path = save(tmp_path / "m.safetensors", **big)
    whole, same = forecast(path, 1e-4), compare(path, path)
    for piece in (999, 39_999):
        monkeypatch.setattr(stored, "_PIECE", piece)
        assert repr(forecast(path, 1e-4)) == repr(whole)
        assert repr(compare(path, path)) == repr(same)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_entries_that_are_no_numbers_are_counted_apart(tmp_path: Path, kind: str) -> None:
    array = np.array([1.0, math.nan, 1.0, 0.25], np.float32).astype(DTYPES[kind])
    path = save(tmp_path / "m.safetensors", w=array, none=array[1:2])
    first, second = forecast(path, 1e-3, formats=[BFLOAT16])["rows"]
    assert (first["entries"], first["nonfinite"], first["lost_fraction"]) == (
        4,
        1,
        2.5 / 3 if False else first["lost_fraction"],
    )
    assert first["lost_fraction"] == pytest.approx(float(expected_lost_fraction(jnp.array([1.0, 1.0, 0.25]), 1e-3, BFLOAT16)))
    assert (second["entries"], second["nonfinite"]) == (1, 1)
    assert math.isnan(second["lost_fraction"])


def test_entries_beyond_the_range_are_lost_and_said(tmp_path: Path) -> None:
    array = np.array([1e300, -1e300, 1e6, 1.0, 5e-324])
    path = save(tmp_path / "m.safetensors", w=array)
    eight, sixteen = forecast(path, 10.0, formats=[FLOAT8_E4M3FN, BFLOAT16])["rows"]
    assert (eight["overflowed"], eight["lost_fraction"]) == (3, 0.6)
    assert (sixteen["overflowed"], sixteen["lost_fraction"]) == (2, 0.6)


def test_weight_decay_by_the_law(tmp_path: Path) -> None:
    """It does nothing up to 2^-(p+1), and moves every normal weight from 2^-p on, ties to even apart."""
    array = np.abs(weights(np.float32))
    path = save(tmp_path / "m.safetensors", w=array, zero=np.zeros(3, np.float32))

    def lost(decay: float) -> float:
        (row, zero) = forecast(path, 0.5, weight_decay=2 * decay, formats=[BFLOAT16])["rows"]
        assert math.isnan(zero["decay_lost_fraction"])
        return row["decay_lost_fraction"]

    assert lost(2.0**-9) == 1
    assert lost(1e-6) == 1
    normal = array[array >= 2.0**-120]
    stored = normal.astype(ml_dtypes.bfloat16).astype(np.float64)
    for decay in (1.01 * 2.0**-9, 0.003, 0.5):
        kept = (stored - decay * stored).astype(np.float32).astype(ml_dtypes.bfloat16) == stored.astype(ml_dtypes.bfloat16)
        tiny = np.count_nonzero(array) - len(normal)  # the two smallest numbers of float32, which are zero in bfloat16
        assert tiny == 2
        assert lost(decay) == pytest.approx(np.mean(kept), abs=1e-12)
    assert math.isnan(lost(0.0))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0; allowed is a number above 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": 1e-60}, "lr is 1e-60"),
        ({"lr": 1.0, "update_size": 0.0}, "update_size is 0.0"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay is -0.1; allowed is 0 or more"),
        ({"lr": 1.0, "formats": [FLOAT32]}, "float32 is not among the formats"),
        ({"lr": 1.0, "formats": [FLOAT8_E8M0FNU]}, "float8_e8m0fnu is not among the formats"),
    ],
)
def test_questions_that_make_no_sense(tmp_path: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        forecast(save(tmp_path / "m.safetensors", **_ONE), **keywords)


# Compare


@pytest.mark.parametrize("kind", DTYPES)
def test_compare_counts_known_changes(tmp_path: Path, kind: str) -> None:
    dtype = np.dtype(DTYPES[kind])
    word = f"u{dtype.itemsize}"
    old = np.array([1.0, 2.0, -1.0, 0.0, 0.0, -0.0, 3.0, 4.0, math.nan, 1.0], np.float32).astype(dtype)
    new = old.copy()
    bits = new.view(word)
    bits[1] += 1  # away from a power of two
    bits[2] -= 1  # towards zero
    bits[3] += 1  # to the smallest number
    bits[4] = old[5:6].view(word)[0]  # +0 to -0: other bits, no distance
    bits[5] = 1  # from -0 across to the smallest positive number
    bits[6] += 2  # two values
    new[9] = math.nan
    a = save(tmp_path / "a.safetensors", w=old, norm=np.ones(4, dtype), still=old)
    b = save(tmp_path / "b.safetensors", w=new, norm=np.ones(4, dtype), still=old)
    found = compare(a, b)
    w, norm, still = found["rows"]
    assert w == {
        "tensor": "w",
        "dtype": dtype.name,
        "entries": 10,
        "unchanged_fraction": 0.3,
        "one_ulp_fraction": 0.4,
        "nonfinite": 2,
        "constant": w["constant"],
    }
    assert math.isnan(w["constant"])
    assert (norm["unchanged_fraction"], norm["constant"], norm["nonfinite"]) == (1, 1.0, 0)
    assert (still["unchanged_fraction"], still["nonfinite"]) == (1, 1)
    assert found["unmoved"] == ["norm", "still"]
    assert found["total"] == {"entries": 24, "unchanged_fraction": 17 / 24, "one_ulp_fraction": 4 / 24, "nonfinite": 3}


@pytest.mark.parametrize("kind", DTYPES)
def test_compare_agrees_with_neighbours_by_nextafter(tmp_path: Path, kind: str) -> None:
    dtype = np.dtype(DTYPES[kind])
    old = weights(dtype)
    rng = np.random.default_rng(1)
    moved = (old.astype(np.float64) * (1 + rng.choice([0, 1e-16, 1e-7, 1e-3, 1e-2, 0.1], old.shape))).astype(dtype)
    up, down = (np.nextafter(old, to) for to in (ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min))
    (row,) = compare(save(tmp_path / "a.safetensors", w=old), save(tmp_path / "b.safetensors", w=moved))["rows"]
    assert row["unchanged_fraction"] == np.mean(old == moved)
    assert row["one_ulp_fraction"] == np.mean((moved != old) & ((moved == up) | (moved == down)))


def test_what_only_one_side_has_and_what_differs(tmp_path: Path) -> None:
    one = np.ones(4, np.float32)
    a = save(
        tmp_path / "a.safetensors",
        w=one,
        shape=one,
        dtype=np.arange(4),
        gone=one,
        ids=np.arange(2),
        none=one[:0],
        scalar=one[0],
    )
    b = save(
        tmp_path / "b.safetensors", w=one, shape=one[:3], dtype=one.astype(np.float16), new=one, none=one[:0], scalar=one[0]
    )
    found = compare(a, b)
    assert [row["tensor"] for row in found["rows"]] == ["w", "none", "scalar"]
    assert (found["only_in_a"], found["only_in_b"]) == (["gone", "ids"], ["new"])
    assert found["skipped"] == {
        "ids": "I64, not floating point",
        "shape": "float32 of shape (4,) in the first, float32 of shape (3,) in the second",
        "dtype": "int64 of shape (4,) in the first, float16 of shape (4,) in the second",
    }
    assert found["unmoved"] == ["w", "scalar"]
    assert math.isnan(found["rows"][1]["unchanged_fraction"])
    assert math.isnan(found["rows"][2]["constant"])
    c = save(tmp_path / "c.safetensors", w=one[:2])
    assert "share no tensor of one name, dtype and shape" in refused(run("compare", a, c))


def test_columns_are_compared_as_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", 4)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", w=array)
    np.savez(tmp_path / "b.npz", w=np.asfortranarray(array))
    assert compare(tmp_path / "a.npz", tmp_path / "b.npz")["unmoved"] == ["w"]
    assert compare(save(tmp_path / "c.safetensors", w=array), tmp_path / "b.npz")["unmoved"] == ["w"]


# Verbs


def strict(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.exception
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=pytest.fail)


def test_forecast_json(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", w=weights(np.float32), none=np.ones(0, np.float32), ids=np.arange(3))
    found = strict(run("forecast", path, "--lr", "1e-5", "--weight-decay", "0.1", "--formats", "float16, bfloat16", "--json"))
    assert set(found) == {"checkpoint", "choices", "assumption", "rows", "totals", "skipped"}
    assert [(row["tensor"], row["format"]) for row in found["rows"]] == [
        (name, fmt) for name in ("w", "none") for fmt in ("float16", "bfloat16")
    ]
    assert {"tensor", "format", "entries", "lost_fraction"} <= set(found["rows"][0])
    assert found["rows"][0]["decay_lost_fraction"] == 1
    assert found["rows"][2]["lost_fraction"] is None
    assert "as for Adam-like optimizers" in found["assumption"]
    assert found["skipped"] == {"ids": "I64, not floating point"}


def test_forecast_prints_its_assumption(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", w=weights(np.float32), ids=np.arange(3))
    said = run("forecast", path, "--lr", "1e-5")
    assert said.exit_code == 0
    assert said.stdout.split()[:5] == ["tensor", "format", "entries", "lost_fraction", "half_lands_lr"]
    assert "assumed: each update is 1e-05 in size (the learning rate, as for Adam-like optimizers)" in said.stdout
    assert said.stderr == "skipped ids: I64, not floating point\n"
    said = run("forecast", path, "--lr", "1e-1", "--optimizer", "sgd", "--update-size", "1e-6", "--weight-decay", "1e-2")
    assert "assumed: each update is 1e-06 in size (as given)" in said.stdout
    assert "weight decay alone asks for 0.001 of each weight" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "sgd"], "--optimizer sgd: its updates have no size known beforehand; give one with --update-size."),
        (["--optimizer", "adamm"], 'unknown optimizer "adamm"; allowed are adafactor'),
        (["--formats", "bf16"], 'unknown format "bf16"; allowed are bfloat16'),
        (["--formats", ""], 'unknown format ""'),
        (["--formats", "float64"], "float64 is not among the formats"),
        (["--weight-decay", "-1"], "weight_decay is -1.0"),
    ],
)
def test_forecast_refuses(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refused(run("forecast", save(tmp_path / "m.safetensors", **_ONE), "--lr", "1e-5", *arguments))


def test_absent_files(tmp_path: Path) -> None:
    assert "absent cannot be read (no such file or directory)" in refused(run("forecast", tmp_path / "absent", "--lr", "1"))
    assert "holds no checkpoint; allowed are" in refused(run("compare", tmp_path, tmp_path))
    assert run("forecast", tmp_path).exit_code == 2
    assert run("compare", tmp_path).exit_code == 2


def test_compare_json_and_table(tmp_path: Path) -> None:
    norm = np.ones(8, ml_dtypes.bfloat16)
    a = save(tmp_path / "a.safetensors", norm=norm, w=weights(np.float32), old=norm)
    b = save(tmp_path / "b.safetensors", norm=norm, w=weights(np.float32, seed=1), ids=np.arange(2))
    found = strict(run("compare", a, b, "--json"))
    assert set(found) == {"a", "b", "choices", "rows", "total", "unmoved", "only_in_a", "only_in_b", "skipped"}
    assert {"tensor", "entries", "unchanged_fraction"} <= set(found["rows"][0])
    assert [row["constant"] for row in found["rows"]] == [1.0, None]
    said = run("compare", a, b)
    assert said.exit_code == 0
    assert "1 of 2 tensors did not move at all." in said.stdout
    assert "skipped old: it is in" in said.stderr
    assert "skipped ids: I64, not floating point" in said.stderr
