"""Checkpoints in dtypes that no update is asked of, in two dtypes, and in formats that are not read."""

import json
import math
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from precisionlab.checkpoints import CheckpointError, compare, forecast, read_checkpoint, stored
from precisionlab.checkpoints.moving import moved, wild

PACKED = {"F4": ml_dtypes.float4_e2m1fn, "F6_E2M3": ml_dtypes.float6_e2m3fn, "F6_E3M2": ml_dtypes.float6_e3m2fn}
BYTES = {
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "BOOL": np.bool_,
    **{f"{letter}{8 * size}": np.dtype(f"{kind}{size}") for letter, kind in (("I", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


def save(path: Path, **tensors: tuple[str, np.ndarray]) -> Path:
    """A safetensors file of (dtype, array), floats of fewer than 8 bits packed from the lowest bit up."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, array) in tensors.items():
        raw = array.tobytes()
        if kind in PACKED:
            bits = 4 if kind == "F4" else 6
            whole = sum(int(byte) << (bits * place) for place, byte in enumerate(array.view(np.uint8).ravel()))
            raw = whole.to_bytes(array.size * bits // 8, "little")
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("kind", PACKED)
def test_packed_floats_are_unpacked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_PIECE", 8)
    bits = 4 if kind == "F4" else 6
    codes = np.random.default_rng(0).integers(0, 1 << bits, 40).astype(np.uint8)
    held = read_checkpoint(save(tmp_path / "a.safetensors", w=(kind, codes.view(PACKED[kind]).reshape(5, 8))))
    assert held.tensors == {}
    assert held.skipped["w"].startswith(f"{kind}, not among F64, F32")
    assert [len(piece) for piece in held.others["w"].pieces()] == [8] * 5
    assert np.concatenate(list(held.others["w"].pieces())).view(np.uint8).tolist() == codes.tolist()


@pytest.mark.parametrize("kind", [*PACKED, *BYTES])
def test_what_moved_is_what_the_values_say(kind: str, tmp_path: Path) -> None:
    """Against a list of all values in their order: neighbours are one apart in it."""
    dtype = np.dtype((PACKED | BYTES)[kind])
    rng = np.random.default_rng(1)
    if dtype.itemsize == 1:
        count = {"F4": 16, "F6_E2M3": 64, "F6_E3M2": 64, "BOOL": 2}.get(kind, 256)
        codes = rng.integers(0, count, (2, 4096)).astype(np.uint8)
        codes[1, ::2] = np.clip(codes[0, ::2].astype(int) + rng.integers(-1, 2, 2048), 0, count - 1)
    else:
        codes = rng.integers(0, 1 << 16, (2, 4096)).astype(f"u{dtype.itemsize}") << np.array(
            8 * dtype.itemsize - 16, f"u{dtype.itemsize}"
        )
        codes[1, ::2] = codes[0, ::2] + rng.integers(0, 2, 2048).astype(codes.dtype)
    x, y = (np.ascontiguousarray(row).view(dtype) for row in codes)
    (row,) = compare(save(tmp_path / "a.safetensors", w=(kind, x)), save(tmp_path / "b.safetensors", w=(kind, y)))["rows"]
    one, other = ([float(v) if dtype.kind not in "biu" else int(v) for v in side] for side in (x, y))
    strange = [not (math.isfinite(a) and math.isfinite(b)) for a, b in zip(one, other, strict=True)]
    assert row["nonfinite"] == sum(strange)
    assert row["unchanged_fraction"] == np.mean(codes[0] == codes[1])

    def next_to(a: Any, b: Any) -> bool:
        if dtype.kind in "biu":
            return abs(a - b) == 1
        if kind == "F8_E8M0":
            return max(a, b) == 2 * min(a, b)
        up, down = (
            np.nextafter(np.array(a, dtype), np.array(to, dtype))
            for to in (ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min)
        )
        return a != b and b in (float(up), float(down))

    neighbours = [not odd and next_to(a, b) for odd, a, b in zip(strange, one, other, strict=True)]
    assert row["one_ulp_fraction"] == np.mean(neighbours)


@pytest.mark.parametrize(
    "kinds", [("BF16", "F32"), ("F32", "BF16"), ("F16", "BF16"), ("F64", "F32"), ("F8_E4M3", "BF16"), ("F4", "F32")]
)
def test_two_dtypes_of_floats_are_compared_by_value(kinds: tuple[str, str], tmp_path: Path) -> None:
    first, second = (np.dtype((PACKED | BYTES)[kind]) for kind in kinds)
    rng = np.random.default_rng(2)
    coarse, fine = (first, second) if ml_dtypes.finfo(first).nmant < ml_dtypes.finfo(second).nmant else (second, first)
    start = np.concatenate([rng.normal(size=400), [0.0, -0.0, 1.0, np.inf, np.nan, 2.0, -1.0, 4.0]])
    with np.errstate(all="ignore"):
        narrow = start.astype(coarse)
        wide = (
            narrow.astype(np.float64) * (1 + rng.choice([0, 2.0**-20, 2.0**-9, 2.0**-8, 2.0**-7, 0.1, 0.6], start.size))
        ).astype(fine)
    x, y = (narrow, wide) if first == coarse else (wide, narrow)
    (row,) = compare(save(tmp_path / "a.safetensors", w=(kinds[0], x)), save(tmp_path / "b.safetensors", w=(kinds[1], y)))[
        "rows"
    ]
    assert row["dtype"] == f"{first.name} and {second.name}"
    values = [(float(a), float(b)) for a, b in zip(narrow, wide, strict=True)]
    strange = [not (math.isfinite(a) and math.isfinite(b)) for a, b in values]
    same = [a == b or (math.isnan(a) and math.isnan(b)) for a, b in values]
    limits = [ml_dtypes.finfo(coarse).max, ml_dtypes.finfo(coarse).min]
    near = []
    for code, (_, b), odd, equal in zip(narrow, values, strange, same, strict=True):
        bounds = [] if odd else [float(np.nextafter(code, np.array(to, coarse))) for to in limits]
        near.append(
            not odd and not equal and Fraction(min(bounds)) <= Fraction(b) <= Fraction(max(bounds)) if bounds else False
        )
    assert row["nonfinite"] == sum(strange)
    assert row["unchanged_fraction"] == np.mean(same)
    assert row["one_ulp_fraction"] == np.mean(near)
    assert 0 < row["unchanged_fraction"] < 1


def test_signed_zeros_differ_as_their_bits_do() -> None:
    zeros = np.array([0.0, -0.0])
    for dtype in (np.float32, ml_dtypes.bfloat16):
        assert moved(zeros.astype(dtype), -zeros).changed.tolist() == [True, True]
    assert not wild(np.zeros(3, ml_dtypes.float8_e4m3fnuz)).any()
    assert wild(np.array([np.nan]).astype(ml_dtypes.float8_e4m3fnuz)).all()


def test_a_constant_is_of_the_second(tmp_path: Path) -> None:
    ones, halves = np.ones(4, ml_dtypes.bfloat16), np.full(4, 0.5, np.float32)
    found = compare(save(tmp_path / "a.safetensors", w=("BF16", ones)), save(tmp_path / "b.safetensors", w=("F32", halves)))
    assert found["rows"][0]["constant"] == 0.5
    steps = save(tmp_path / "c.safetensors", n=("I64", np.array([7, 7])), w=("F32", halves))
    found = compare(steps, steps)
    assert [row["constant"] for row in found["rows"]] == [0.5, 7.0]
    assert found["skipped"] == {}
    assert found["unmoved"] == ["w", "n"]


def test_integers_of_npz_are_compared(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", n=np.array([1, 2, 300]))
    np.savez(tmp_path / "b.npz", n=np.array([1, 3, 400]))
    (row,) = compare(tmp_path / "a.npz", tmp_path / "b.npz")["rows"]
    assert (row["dtype"], row["unchanged_fraction"], row["one_ulp_fraction"]) == ("int64", 1 / 3, 1 / 3)
    with pytest.raises(CheckpointError, match=r"no tensor of floats \(n: int64, not floating point\)"):
        forecast(tmp_path / "a.npz", 1e-3)


@pytest.mark.slow
def test_a_size_beside_half_a_gap_is_on_its_side_of_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones(1, np.float32))
    half = 2.0**-8  # a tie stays at 1; downwards half of it is enough
    for size, lost in ((half * (1 - 2.0**-40), 0.5), (half, 0.5), (half * (1 + 2.0**-40), 0.0)):
        for found in (forecast(tmp_path / "w.npz", size), forecast(tmp_path / "w.npz", 1.0, update_size=size)):
            assert found["rows"][0]["lost_fraction"] == lost
    decayed = [forecast(tmp_path / "w.npz", 1.0, weight_decay=half / 2 * (1 + t * 2.0**-40))["rows"][0] for t in (-1, 0, 1)]
    assert [row["decay_lost_fraction"] for row in decayed] == [1, 1, 0]


def test_float64_weights_are_rounded_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.array([1 + 2.0**-8 + 2.0**-40]))  # 1.0078125 in bfloat16, 1 by way of float32
    assert forecast(tmp_path / "w.npz", 2.0**-8)["rows"][0]["lost_fraction"] == 0.0


def test_a_packed_tensor_of_the_wrong_length_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", w=("F4", np.zeros(4, ml_dtypes.float4_e2m1fn)))
    path.write_bytes(path.read_bytes().replace(b'"shape": [4]', b'"shape": [5]'))
    with pytest.raises(CheckpointError, match=r'"w" has 2 bytes, F4 of shape \(5,\) has 3'):
        compare(path, path)


FOREIGN = {
    "model.msgpack": (
        serialization.to_bytes({"w": np.ones(8, np.float32)}),
        "msgpack, as flax.serialization writes it",
        "np.savez",
    ),
    "w.npy": (b"\x93NUMPY\x01\x00", "single array", "np.savez('weights.npz', w=np.load(path))"),
    "model.eqx": (b"\x93NUMPY\x01\x00", "equinox", "np.savez"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5", "np.savez"),
    "without_ending": (b"\x89HDF\r\n\x1a\n", "HDF5", "np.savez"),
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "GGUF", ".safetensors"),
    "pytorch_model.bin": (b"\x80\x02\x8a\x0a", "pickle, which is never loaded", "safetensors.torch.save_file"),
    "last.ckpt": (b"\x80\x02\x8a\x0a", "pickle, which is never loaded", "safetensors.torch.save_file"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "ONNX", "onnx.numpy_helper"),
    "model.ckpt-1.data-00000-of-00001": (b"12345678", "TensorFlow", "tf.train.load_variable"),
    "model.tar.gz": (b"\x1f\x8b\x08\x00", "compressed or an archive", "unpack it"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_with_a_way_out(name: str, tmp_path: Path) -> None:
    start, what, way = FOREIGN[name]
    (tmp_path / name).write_bytes(start + bytes(64))
    for call in (lambda: forecast(tmp_path / name, 1e-4), lambda: compare(tmp_path / name, tmp_path / name)):
        with pytest.raises(CheckpointError) as error:
            call()
        message = str(error.value)
        assert message.startswith(str(tmp_path / name))
        assert what in message
        assert way in message
        assert "\n" not in message
    if name != "without_ending":
        with pytest.raises(
            CheckpointError, match="holds no checkpoint; allowed are .* what Orbax writes; .*" + name.split(".")[0]
        ):
            forecast(tmp_path, 1e-4)


def test_following_the_sentences_works(tmp_path: Path) -> None:
    import flax

    weights = {"dense": {"kernel": np.ones((2, 3), np.float32)}, "w": np.arange(3.0)}
    path = tmp_path / "model.msgpack"
    path.write_bytes(serialization.to_bytes(weights))
    flat = flax.traverse_util.flatten_dict(serialization.msgpack_restore(path.read_bytes()), sep=".")
    np.savez(tmp_path / "weights.npz", **flat)
    assert list(read_checkpoint(tmp_path / "weights.npz").tensors) == ["dense.kernel", "w"]
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(CheckpointError, match="HDF5, as Keras writes it"):
        read_checkpoint(tmp_path / "model.keras")
