"""Files and folders that are whole or not there: written beside, made durable, renamed into place.

Everything that a run leaves on disk goes through here. The functions raise OSError; callers make it one
line for the user with `explained`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from shoal.errors import ShoalError

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_ASIDE = re.compile(r"\.(.+)\.shoal-old")  # the name must be nobody else's: `clean` deletes
_PICTURES = (".png", ".svg", ".pdf")


def resolve(path: str | Path) -> Path:
    """Absolute and without links, so that what a link points to is replaced and not the link. Raises
    ShoalError for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise ShoalError(f"a path must be a text or a pathlib.Path, got {path!r}")
    return Path(path).expanduser().resolve()


@contextlib.contextmanager
def explained(what: str, then: str = "") -> Iterator[None]:
    """Where the block fails in the file system, raise a ShoalError: "WHAT: the system's reason THEN"."""
    try:
        yield
    except OSError as error:
        busy = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
        reason = "another process is writing there now" if busy else error.strerror or str(error)
        raise ShoalError(f"{what}: {reason}{then}") from error


def check_picture(output: str | Path, option: str = "") -> None:
    """Raise ShoalError where a picture's name has no ending that can be drawn. option: where it was given."""
    if Path(output).suffix.lower() not in _PICTURES:
        said = f"{option}: " if option else ""
        raise ShoalError(f"{said}{output} should end in one of {', '.join(_PICTURES)}")


# Files


@contextlib.contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when the block ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Replace a file's content: a reader, or a reboot, finds the old content or the new."""
    hidden = _hidden(path)
    try:
        with durable(hidden) as file:
            file.write(content)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON text, which any reader knows: NaN and infinities become null."""
    write(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping. Raises ShoalError naming the file if it is not one, OSError if it can't be read."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShoalError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise ShoalError(f"{path} is damaged: it is not a mapping")
    return value


def finite(value: Any) -> Any:
    """The same plain data with None for NaN and infinities, and Python numbers for NumPy's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Folders


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden folder to fill with durable files; it takes the place of `path` when the block ends well.

    Renaming cannot replace a folder that is not empty, so an old folder first moves aside, to where
    `find` looks too. Nothing is left behind by a failure; what a kill leaves, `clean` removes.
    """
    with _hidden_folder(path) as hidden:
        yield hidden
        sync(hidden)
        _settle(path)
        if not path.exists():
            hidden.rename(path)
            sync(path.parent)
            return
        aside = _aside(path)
        with _locked(path):  # the lock stays with the folder when it moves: `clean` lets it be
            path.rename(aside)
            try:
                hidden.rename(path)
            except BaseException:
                aside.rename(path)
                raise
            sync(path.parent)
            # The new folder is durable from here on; what fails now is tidied by the next `clean`.
            with contextlib.suppress(OSError):
                _discard(aside)


def find(path: Path) -> Path | None:
    """Where the folder is: at `path`, or aside if a writer died between its two renames; else None."""
    # The second look at `path` is for a writer that finished between the first two.
    return next((folder for folder in (path, _aside(path), path) if folder.exists()), None)


def names(parent: Path) -> list[str]:
    """Names of the folders in `parent`, those that `find` finds aside included; [] if it does not exist."""
    found: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for child in parent.iterdir():
            if match := _ASIDE.fullmatch(child.name):
                found.add(match[1])
            elif child.is_dir() and not child.name.startswith("."):
                found.add(child.name)
    return sorted(found)


def remove(path: Path) -> None:
    """Delete a folder so that it is all there or gone, also if killed. Nothing happens if it is absent."""
    for folder in (_aside(path), path):
        if folder.exists():
            _discard(folder)


def clean(parent: Path) -> None:
    """Remove what killed writers left in `parent`. Folders of living writers are locked and stay."""
    for child in list(parent.iterdir()):
        with contextlib.suppress(OSError):
            if _LEFTOVER.fullmatch(child.name):
                if child.is_dir():
                    with _locked(child):
                        shutil.rmtree(child)
            elif match := _ASIDE.fullmatch(child.name):
                _settle(parent / match[1])


def clean_files(parent: Path) -> None:
    """Remove the half-written files of killed writers in a folder that nobody else writes in now."""
    for child in list(parent.iterdir()):
        if _LEFTOVER.fullmatch(child.name) and not child.is_dir():
            child.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Finish what a killed writer left half done: the old folder goes back, or away if the new one is in."""
    aside = _aside(path)
    if not aside.exists():
        return
    with _locked(aside):
        if path.exists():
            _discard(aside)
        else:
            aside.rename(path)


def _discard(folder: Path) -> None:
    doomed = _hidden(folder)
    folder.rename(doomed)
    # Whatever cannot be deleted now is hidden, and `clean` tries again.
    shutil.rmtree(doomed, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.shoal-old"


def _hidden(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when the holder dies. OSError if it is held."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _hidden_folder(path: Path) -> Iterator[Path]:
    """A new locked folder beside `path`; whatever is still there at the end is removed."""
    while True:
        folder = _hidden(path)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(folder))
            except (BlockingIOError, FileNotFoundError):
                continue  # another writer's `clean` took the folder in the moment before it was locked
            if not folder.exists():
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
