"""Checkpoints: a tree of arrays and what is said of it in a folder, saved atomically, loaded without code.

A checkpoint is a folder:

    manifest.json          format version, `info` (JSON from the caller), each array's dtype, shape and file,
                           each file's size and SHA-256, and a SHA-256 of the manifest itself
    arrays.safetensors     the arrays; further files arrays_001.safetensors, ... from 1 GiB on

`save` writes it beside, makes it durable and renames it into place (`storage.replacing`): a kill or a power
cut at any moment leaves the old checkpoint or the new one. Nothing is ever unpickled or imported: a
checkpoint can only supply numbers, names and JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shoal import storage, tensors
from shoal.errors import ShoalError

FORMAT = "shoal-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
FILE_BYTES = 2**30  # another array file is begun where the next array would pass this size

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint. arrays: slash path -> NumPy array; info: the JSON given to `save`;
    path: the folder that was asked for."""

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]
    path: Path


def save(path: str | Path, tree: Any, info: Mapping[str, Any]) -> None:
    """Save a pytree of NumPy or JAX arrays (Python numbers too) and `info` (JSON-able) as the folder `path`.

    Array names are slash paths of dict keys, field names and tuple indices ("policies/main/params/...");
    a "/" within a key is written "~1", a "~" as "~0", an empty key "~2". Empty containers have no array and
    leave no trace.
    An existing checkpoint at `path` is replaced, without a moment in which none can be loaded. Leftovers of
    writers that were killed in the same parent folder are removed.

    Raises ShoalError where an array or `info` cannot be saved as data, where `path` is something else
    than a checkpoint, and where the disk fails or is full: earlier checkpoints are then untouched.
    """
    path = storage.resolve(path)
    arrays = flatten(tree)
    plain = _plain(info, path)
    with storage.explained(
        f"could not save the checkpoint {path}", then="; earlier checkpoints are untouched"
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.clean(path.parent)
        _refuse_foreign(path)
        with storage.replacing(path) as folder:
            _write(folder, arrays, plain)


def load(path: str | Path) -> Loaded:
    """Read and verify a checkpoint: sizes, SHA-256, format version, each array's name, dtype and shape.

    Raises ShoalError, one line that names the file or the array, for whatever is wrong. Reads only.
    """
    with storage.explained(f"could not read the checkpoint {path}"):
        folder = storage.find(storage.resolve(path))
        if folder is None:
            raise ShoalError(f"there is no checkpoint at {path}")
        manifest = _read_manifest(folder)
        found: dict[str, np.ndarray] = {}
        for name, entry in manifest["files"].items():
            arrays = tensors.read(folder / name, tensors.FileEntry(entry["size"], entry["sha256"]))
            expected = {p: a for p, a in manifest["arrays"].items() if a["file"] == name}
            _check_arrays(folder / name, arrays, expected)
            found |= arrays
        return Loaded(arrays=found, info=manifest["info"], path=Path(path))


def restore(template: Any, arrays: Mapping[str, np.ndarray], prefix: str) -> Any:
    """The arrays under `prefix` in the structure of `template`, whose leaves give the shapes and dtypes.

    A leaf is a jax.Array where the template's leaf is one (with its sharding, where that was chosen
    explicitly) and a NumPy array otherwise, also for `jax.ShapeDtypeStruct`. prefix "" takes everything.
    Raises ShoalError naming every missing and unexpected array and every other shape and dtype.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_join(prefix, _name(keys)): leaf for keys, leaf in leaves}
    present = {p: a for p, a in arrays.items() if _under(p, prefix)}
    faults = [f"missing {p}" for p in wanted if p not in present]
    faults += [f"unexpected {p}" for p in present if p not in wanted]
    for path, leaf in wanted.items():
        if path in present:
            shape, dtype = _shape_and_dtype(leaf)
            array = present[path]
            if array.shape != shape:
                faults.append(f"{path} has shape {array.shape} instead of {shape}")
            if array.dtype != dtype:
                faults.append(f"{path} has dtype {array.dtype} instead of {dtype}")
    if faults:
        raise ShoalError("the checkpoint does not fit: " + "; ".join(faults))
    return jax.tree_util.tree_unflatten(structure, [_like(leaf, present[p]) for p, leaf in wanted.items()])


def nested(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The arrays under `prefix` as nested dicts by path: for parts whose sizes vary, such as journals.

    Tuples come back as dicts of "0", "1", ...; what was empty is absent. {} if nothing is there.
    """
    result: dict[str, Any] = {}
    for path, array in arrays.items():
        if not _under(path, prefix) or path == prefix:
            continue
        *parents, last = map(_unescape, path[len(prefix) + 1 if prefix else 0 :].split("/"))
        inner = result
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return result


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """slash path -> NumPy array, in the tree's order. Raises ShoalError for leaves that are not numbers."""
    arrays: dict[str, np.ndarray] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _name(keys)
        if name in arrays or name == "__metadata__":
            raise ShoalError(f"cannot save the array {name!r}: the name is taken; rename the dict key")
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ShoalError(
                f"cannot save {name!r} of dtype {leaf.dtype}; jax.random.key_data makes it plain"
            )
        array = np.asarray(leaf)
        if array.dtype.name not in tensors.DTYPES:
            known = ", ".join(tensors.DTYPES)
            raise ShoalError(f"cannot save {name!r} of dtype {array.dtype}; known are {known}")
        arrays[name] = array
    return arrays


def remove(path: str | Path) -> None:
    """Delete a checkpoint so that it is all there or gone, also if killed. No error if it is absent."""
    path = storage.resolve(path)
    with storage.explained(f"could not delete the checkpoint {path}"):
        storage.remove(path)


# Writing


def _write(folder: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    files: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for number, part in enumerate(_split(arrays)):
        name = f"arrays_{number:03d}.safetensors" if number else "arrays.safetensors"
        with storage.durable(folder / name) as file:
            files[name] = asdict(tensors.write(file, {p: arrays[p] for p in part}))
        for p in part:
            entries[p] = {"dtype": arrays[p].dtype.name, "shape": arrays[p].shape, "file": name}
    with storage.durable(folder / MANIFEST) as file:
        file.write(seal({"info": info, "files": files, "arrays": entries}))


def seal(content: Mapping[str, Any], version: int = VERSION) -> bytes:
    """The manifest's text, which holds its own SHA-256, taken with zeros in the digest's place."""
    whole = {"format": FORMAT, "version": version, "sha256": _NO_DIGEST, **content}
    blank = json.dumps(whole, indent=1).encode()
    return blank.replace(_NO_DIGEST.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def _split(arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Array names by file. Wide dtypes come first so that every array is aligned within its file."""
    parts: list[list[str]] = [[]]
    size = 0
    for p in sorted(arrays, key=lambda p: (-arrays[p].dtype.itemsize, p)):
        if parts[-1] and size + arrays[p].nbytes > FILE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(p)
        size += arrays[p].nbytes
    return parts


def _refuse_foreign(path: Path) -> None:
    """Never replace what is not a checkpoint, such as a folder full of somebody's work."""
    if path.is_dir():
        if any(path.iterdir()) and not _ours(path):
            raise ShoalError(f"{path} is a folder and not a checkpoint; choose another place to save")
    elif path.exists():
        raise ShoalError(f"{path} is a file; choose another place to save the checkpoint")


def _ours(folder: Path) -> bool:
    """Whether a folder is a checkpoint, be it a damaged one, and holds nothing else."""
    names = {child.name for child in folder.iterdir()}
    if MANIFEST not in names or any(not n.endswith(".safetensors") for n in names - {MANIFEST}):
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return len(names) > 1
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _plain(info: Mapping[str, Any], path: Path) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a {type(value).__name__} is not JSON")

    try:
        return json.loads(json.dumps(dict(info), default=number))
    except (TypeError, ValueError, RecursionError) as error:
        raise ShoalError(f"cannot save the checkpoint {path}: its info is not plain: {error}") from error


# Reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its own digest and every field that is used from it checked."""
    place = folder / MANIFEST
    if not folder.is_dir() or not place.exists():
        raise ShoalError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    with tensors.open_plain(place) as file:
        raw = file.read()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ShoalError(f"{place} is damaged: it is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ShoalError(f"{place} is damaged or not a checkpoint's: its format is not {FORMAT!r}")
    version, digest = manifest.get("version"), manifest.get("sha256")
    # The version comes first: a newer format may define the digest in another way.
    if isinstance(version, int) and version > VERSION:
        raise ShoalError(
            f"{folder} has checkpoint format {version}, this Shoal reads {VERSION}: update Shoal to load it"
        )
    if not isinstance(digest, str) or len(digest) != 64:
        raise ShoalError(f"{place} is damaged: it has no SHA-256 of its own")
    blank = raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise ShoalError(f"{place} is damaged: its content does not match its SHA-256")
    _check_fields(place, manifest)
    return manifest


def _check_fields(place: Path, manifest: Mapping[str, Any]) -> None:
    """What a digest cannot tell: whether whoever wrote the manifest meant well."""

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise ShoalError(f"{place} is not valid: {what}")

    def count(value: Any) -> bool:
        return type(value) is int and value >= 0

    version = manifest.get("version")
    demand(version == VERSION, f"its format version is {version!r}, not {VERSION}")
    for field in ("info", "files", "arrays"):
        demand(isinstance(manifest.get(field), dict), f"{field!r} is not a mapping")
    for name, entry in manifest["files"].items():
        plain = _FILE_NAME.fullmatch(name) is not None
        demand(plain, f"the file name {name!r} is not a plain name, ending in .safetensors, in the folder")
        good = isinstance(entry, dict) and count(entry.get("size")) and isinstance(entry.get("sha256"), str)
        demand(good, f"the file {name!r} has no size and SHA-256")
    for path, entry in manifest["arrays"].items():
        demand(isinstance(entry, dict), f"the array {path!r} has no description")
        dtype, shape, file = entry.get("dtype"), entry.get("shape"), entry.get("file")
        demand(dtype in tensors.DTYPES, f"the array {path!r} has the unknown dtype {dtype!r}")
        demand(isinstance(shape, list) and all(map(count, shape)), f"the array {path!r} has no valid shape")
        demand(isinstance(file, str) and file in manifest["files"], f"the array {path!r} is in no file")


def _check_arrays(place: Path, arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    for path in expected:
        if path not in arrays:
            raise ShoalError(f"the array {path!r} is missing from {place}")
    for path, array in arrays.items():
        if path not in expected:
            raise ShoalError(f"{place} holds the array {path!r}, which its manifest does not place there")
        shape, dtype = tuple(expected[path]["shape"]), expected[path]["dtype"]
        if array.shape != shape:
            raise ShoalError(
                f"the array {path!r} in {place} has shape {array.shape}, its manifest says {shape}"
            )
        if array.dtype.name != dtype:
            raise ShoalError(
                f"the array {path!r} in {place} has dtype {array.dtype}, its manifest says {dtype}"
            )


# Names and leaves


def _name(keys: tuple[Any, ...]) -> str:
    """The slash path of a leaf from JAX's key path."""

    def text(key: Any) -> str:
        return next((str(getattr(key, f)) for f in ("key", "name", "idx") if hasattr(key, f)), str(key))

    return "/".join(text(key).replace("~", "~0").replace("/", "~1") or "~2" for key in keys)


def _unescape(part: str) -> str:
    return "" if part == "~2" else part.replace("~1", "/").replace("~0", "~")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix and name else prefix or name


def _under(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + "/")


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The array as the template's leaf is kept. Always a copy, so that a donated buffer is nobody else's."""
    if not isinstance(leaf, jax.Array):
        return array.copy()
    return jax.device_put(jnp.array(array), leaf.sharding) if leaf.committed else jnp.array(array)
