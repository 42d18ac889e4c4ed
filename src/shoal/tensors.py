"""Named arrays in one file of the safetensors format, streamed, with the file's size and SHA-256.

The format (https://github.com/huggingface/safetensors): 8 bytes header length, little-endian; a JSON header
name -> dtype, shape, data_offsets; the data. It is written and read here, array by array, because whole
files in memory would double the size of a replay, and because bfloat16 has to come back as NumPy's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import ELOOP
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from shoal.errors import ShoalError

_CODES = {  # NumPy's name -> the format's
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_NAMES = {code: name for name, code in _CODES.items()}
DTYPES = tuple(_CODES)


@dataclass(frozen=True)
class FileEntry:
    """What is known of a written file: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> FileEntry:
    """Write the arrays in the order given, which should be by falling item size to keep them aligned."""
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    size = 0
    for chunk in (len(text).to_bytes(8, "little"), text):
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    for array in arrays.values():
        # Row-major and little-endian; not a copy where it already is.
        data = _bytes(np.asarray(array, array.dtype.newbyteorder("<"), order="C"))
        file.write(data)
        digest.update(data)
        size += len(data)
    return FileEntry(size, digest.hexdigest())


def read(place: Path, entry: FileEntry) -> dict[str, np.ndarray]:
    """Every array of the file, read once. Raises ShoalError unless size, SHA-256 and header are right."""
    digest = hashlib.sha256()
    with open_plain(place) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise ShoalError(f"{place} is damaged: it has {size} bytes instead of {entry.size}")
        found: dict[str, np.ndarray] = {}
        for name, dtype, shape in _read_header(place, file, size, digest.update):
            array = np.empty(shape, dtype)
            data = _bytes(array)
            if file.readinto(data) != array.nbytes:  # type: ignore[attr-defined]
                raise ShoalError(f"{place} is damaged: the array {name!r} is cut short")
            digest.update(data)
            found[name] = array
    if digest.hexdigest() != entry.sha256:
        raise ShoalError(f"{place} is damaged: its content does not match its SHA-256")
    return found


def open_plain(path: Path) -> BinaryIO:
    """A regular file: no link that leads elsewhere, no pipe that never ends. Raises ShoalError otherwise."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except FileNotFoundError as error:
        raise ShoalError(f"{path} is missing") from error
    except OSError as error:
        if error.errno == ELOOP:
            raise ShoalError(f"{path} is a symbolic link; a checkpoint holds plain files only") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ShoalError(f"{path} is not a plain file")
    return file


def _read_header(
    place: Path, file: BinaryIO, size: int, seen: Callable[[bytes], Any]
) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    """(name, dtype, shape) in the order of the data, which must fill the rest of the file without holes."""
    broken = ShoalError(f"{place} is damaged: its header cannot be read")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) != 8 or length > size - 8:
        raise broken
    text = file.read(length)
    seen(start + text)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        order = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        result: list[tuple[str, np.dtype, tuple[int, ...]]] = []
        offset = 0
        for name, entry in order:
            dtype, shape = _dtype(_NAMES[entry["dtype"]]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            counts = all(type(n) is int and n >= 0 for n in shape)
            if not counts or begin != offset or end - begin != math.prod(shape) * dtype.itemsize:
                raise broken
            result.append((name, dtype, shape))
            offset = end
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken from error
    if offset != size - 8 - length:
        raise broken
    return result


def _bytes(array: np.ndarray) -> memoryview:
    view: Any = array.reshape(-1).view(np.uint8)
    return memoryview(view)


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))
