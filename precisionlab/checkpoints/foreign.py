"""Files that are not read, told by their first bytes or their name: what each is, and how its weights get into one that is."""

from pathlib import Path

__all__ = ["AGAIN", "foreign_file", "foreign_in"]

AGAIN = "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
_TORCH = f"looks like a pickle, which is never loaded; save it again as .safetensors or .npz, from PyTorch {AGAIN}"
_NPY = "is a single array (.npy), which has no name; save it again: np.savez('weights.npz', w=np.load(path))"
_EQUINOX = (
    "holds arrays without names, as equinox.tree_serialise_leaves writes them; load them into the model and save it again: "
    "np.savez('weights.npz', **{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)})"
)
_MSGPACK = (
    "is msgpack, as flax.serialization writes it; save it again: np.savez('weights.npz', **flax.traverse_util.flatten_dict("
    "flax.serialization.msgpack_restore(open(path, 'rb').read()), sep='.'))"
)
_HDF5 = (
    "is HDF5, as Keras writes it; load the model and save it again: np.savez('weights.npz', **{w.path: w.numpy() for w in "
    "model.weights})"
)
_GGUF = "is GGUF, as llama.cpp reads it, mostly quantized; name the weights that it was made from, as .safetensors or .npz"
_ONNX = (
    "is ONNX; save its initializers again: np.savez('weights.npz', **{t.name: onnx.numpy_helper.to_array(t) for t in "
    "onnx.load(path).graph.initializer})"
)
_TENSORFLOW = (
    "is TensorFlow's; save its variables again: np.savez('weights.npz', **{name: tf.train.load_variable(path, name) for "
    "name, _ in tf.train.list_variables(path)})"
)
_PACKED = "is compressed or an archive; unpack it and name what is inside"

_STARTS = {
    b"\x93NUMPY": _NPY,
    b"\x89HDF": _HDF5,
    b"GGUF": _GGUF,
    b"\x80": _TORCH,
    b"\x1f\x8b": _PACKED,
    b"(\xb5/\xfd": _PACKED,
}
_ENDINGS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"), _TORCH),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _HDF5),
    **dict.fromkeys((".pb", ".index", ".tflite"), _TENSORFLOW),
    **dict.fromkeys((".gz", ".tar", ".tgz", ".zst", ".xz", ".7z"), _PACKED),
    ".npy": _NPY,
    ".eqx": _EQUINOX,
    ".msgpack": _MSGPACK,
    ".gguf": _GGUF,
    ".onnx": _ONNX,
}


def foreign_file(path: Path, start: bytes) -> str | None:
    """A sentence about a file of a format that is not read; None for what may be one that is.

    Args:
        path: its name, of which the ending counts.
        start: its first bytes, which count first; those of a pickle and of msgpack can begin a safetensors file, too.

    Example:
        >>> foreign_file(Path("model.gguf"), b"GGUF")[:41]
        'model.gguf is GGUF, as llama.cpp reads it'
    """
    if path.suffix in (".safetensors", ".npz"):
        return None
    ending = _TENSORFLOW if ".data-" in path.name else _ENDINGS.get(path.suffix.lower())
    told = next((what for magic, what in _STARTS.items() if start.startswith(magic)), None)
    what = ending if ending in (_EQUINOX, _MSGPACK) else told or ending
    return what and f"{path} {what}."


def foreign_in(folder: Path) -> str | None:
    """The same about the first such file of a folder, by its ending alone."""
    sentences = (foreign_file(path, b"") for path in sorted(folder.iterdir()) if path.is_file())
    return next((sentence for sentence in sentences if sentence), None)
