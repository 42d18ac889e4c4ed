"""Checkpoints: exact, whole after a kill at any moment, and nothing but data when they are read."""

from __future__ import annotations

import _pickle
import builtins
import contextlib
import errno
import json
import os
import pickle
import random
import re
import resource
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import checkpoint, storage, tensors
from shoal.errors import ShoalError

FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Pair(NamedTuple):
    left: Any
    right: Any


DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in tensors.DTYPES]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any dtype, any bits (NaN payloads too), zero-size and zero-dim shapes included, any memory order."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    size = int(np.prod(shape))
    if dtype.kind == "b":
        array = rng.integers(0, 2, size).astype(bool).reshape(shape)
    else:
        array = np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


KEYS = st.text("ab/~. 1é", max_size=3)
TREES = st.recursive(
    arrays(),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner | st.none()),
    ),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def error_of(call: Callable[[], Any]) -> str:
    """The one line of the ShoalError that the call must raise."""
    with pytest.raises(ShoalError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of three arrays: float32 a/w [2, 3], int64 a/n [], bool b [4]."""
    path = tmp_path / "saved"
    tree = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(7)}, "b": np.ones(4, bool)}
    checkpoint.save(path, tree, {"step": 3})
    return path


class TestRoundTrip:
    @FEW
    @given(tree=TREES)
    def test_every_tree_comes_back_bit_for_bit(self, tree: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            checkpoint.save(path, {"run": tree}, {})
            loaded = checkpoint.load(path)
            back = checkpoint.restore(tree, loaded.arrays, "run")
            assert jax.tree.structure(back) == jax.tree.structure(tree)
            assert all(map(same, jax.tree.leaves(back), jax.tree.leaves(tree)))
            # By path too, where sizes are not known beforehand.
            again = checkpoint.flatten({"run": checkpoint.nested(loaded.arrays, "run")})
            if not isinstance(tree, np.ndarray):
                assert again.keys() == loaded.arrays.keys()
                assert all(same(again[p], a) for p, a in loaded.arrays.items())

    def test_paths_are_dict_keys_field_names_and_indices(self) -> None:
        tree = {"policies": {"main": (Pair(np.zeros(1), {"a/b~": np.zeros(2)}),)}}
        assert list(checkpoint.flatten(tree)) == [
            "policies/main/0/left",
            "policies/main/0/right/a~1b~0",
        ]

    def test_optimizer_state(self, tmp_path: Path) -> None:
        params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
        state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
        checkpoint.save(tmp_path / "x", state, {})
        back = checkpoint.restore(state, checkpoint.load(tmp_path / "x").arrays, "")
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert all(map(same, jax.tree.leaves(back), jax.tree.leaves(state)))

    def test_info_comes_back_as_json(self, tmp_path: Path) -> None:
        info = {
            "config": {"lr": 3e-4, "sizes": (64, 64), "é": None},
            "steps": np.int64(2**40),
            "best": -np.inf,
        }
        checkpoint.save(tmp_path / "x", {}, info)
        loaded = checkpoint.load(tmp_path / "x")
        assert loaded.info == {
            "config": {"lr": 3e-4, "sizes": [64, 64], "é": None},
            "steps": 2**40,
            "best": -np.inf,
        }
        assert loaded.arrays == {} and loaded.path == tmp_path / "x"

    def test_big_endian_arrays_keep_their_values(self, tmp_path: Path) -> None:
        checkpoint.save(tmp_path / "x", {"a": np.arange(5, dtype=">i4")}, {})
        assert same(checkpoint.load(tmp_path / "x").arrays["a"], np.arange(5, dtype=np.int32))

    def test_several_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "FILE_BYTES", 100)
        tree = {str(i): np.full(10, i, np.float32) for i in range(5)}  # 40 bytes each: two in a file
        checkpoint.save(tmp_path / "x", tree, {})
        names = ["arrays.safetensors", "arrays_001.safetensors", "arrays_002.safetensors"]
        assert entries(tmp_path / "x") == [*names, "manifest.json"]
        loaded = checkpoint.load(tmp_path / "x").arrays
        assert all(same(loaded[p], a) for p, a in tree.items())
        (tmp_path / "x" / names[1]).unlink()
        assert names[1] in error_of(lambda: checkpoint.load(tmp_path / "x"))

    def test_the_arrays_are_plain_safetensors(self, saved: Path) -> None:
        theirs = safetensors.numpy.load_file(saved / "arrays.safetensors")
        ours = checkpoint.load(saved).arrays
        assert theirs.keys() == ours.keys()
        assert all(same(theirs[p], a) for p, a in ours.items())

    @pytest.mark.parametrize(
        ("tree", "said"),
        [
            ({"a": {"b": np.array(["text"])}}, "a/b"),
            ({"a": np.array([object()])}, "object"),
            ({"a": jax.random.key(0)}, "key_data"),
            ({"__metadata__": np.zeros(1)}, "__metadata__"),
            (({"1": np.zeros(1), 1: np.zeros(1)},), "0/1"),
        ],
    )
    def test_what_is_not_plain_data_is_refused(self, tmp_path: Path, tree: Any, said: str) -> None:
        if said == "0/1":  # JAX itself refuses keys that it cannot sort
            with pytest.raises(ValueError):
                checkpoint.save(tmp_path / "x", tree, {})
        else:
            assert said in error_of(lambda: checkpoint.save(tmp_path / "x", tree, {}))
        assert entries(tmp_path) == []

    def test_info_that_is_not_json_is_refused(self, tmp_path: Path) -> None:
        assert "object" in error_of(lambda: checkpoint.save(tmp_path / "x", {}, {"a": object()}))


class TestRestore:
    def test_every_difference_is_named(self) -> None:
        template = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1), "c": np.zeros(1, np.int8)}
        found = {
            "p/a": np.zeros((3, 2), np.float32),
            "p/c": np.zeros(1, np.int16),
            "p/d": np.zeros(1),
            "pp/b": np.zeros(1),
        }
        said = error_of(lambda: checkpoint.restore(template, found, "p"))
        for part in (
            "missing p/b",
            "unexpected p/d",
            "p/a has shape (3, 2) instead of (2, 3)",
            "p/c has dtype int16 instead of int8",
        ):
            assert part in said
        assert "pp/b" not in said

    def test_leaves_come_back_as_the_template_keeps_them(self) -> None:
        template = {
            "j": jnp.zeros(2),
            "n": np.zeros(2, np.float32),
            "s": jax.ShapeDtypeStruct((2,), np.float32),
        }
        found = {name: np.array([1, 2], np.float32) for name in template}
        back = checkpoint.restore(template, found, "")
        assert isinstance(back["j"], jax.Array) and not back["j"].committed
        assert type(back["n"]) is np.ndarray and type(back["s"]) is np.ndarray
        back["n"][0] = 9  # a copy: two that restore from one checkpoint do not share memory
        assert found["n"][0] == 1

    def test_a_chosen_sharding_is_kept(self) -> None:
        device = jax.devices()[0]
        template = jax.device_put(jnp.zeros(2), device)
        back = checkpoint.restore(template, {"x": np.ones(2, np.float32)}, "x")
        assert back.committed and back.sharding == template.sharding

    def test_nested_takes_whole_path_parts(self) -> None:
        found = {"run/a": np.zeros(1), "run/b/0": np.zeros(2), "runs": np.zeros(3), "run": np.zeros(4)}
        assert {
            k: v.shape if k == "a" else v["0"].shape for k, v in checkpoint.nested(found, "run").items()
        } == {
            "a": (1,),
            "b": (2,),
        }
        assert checkpoint.nested(found, "nothing") == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "x"
    checkpoint.save(path, {"a": np.arange(9.0), "b": (np.zeros(2, np.uint8),)}, {"n": 1, "text": "é~"})
    return path


class TestDamage:
    @settings(FEW, max_examples=100)
    @given(data=st.data())
    def test_a_changed_byte_anywhere_is_noticed(self, data: st.DataObject, folder: Path) -> None:
        place = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = place.read_bytes()
        position = data.draw(st.integers(0, len(content) - 1))
        changed = bytearray(content)
        changed[position] ^= data.draw(st.integers(1, 255))
        place.write_bytes(changed)
        try:
            assert str(folder) in error_of(lambda: checkpoint.load(folder))
        finally:
            place.write_bytes(content)
        checkpoint.load(folder)

    @pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
    @pytest.mark.parametrize("left", [0, 5, 100, -1])
    def test_truncated(self, saved: Path, name: str, left: int) -> None:
        place = saved / name
        place.write_bytes(place.read_bytes()[:left])
        assert name in error_of(lambda: checkpoint.load(saved))

    @pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
    def test_missing_file(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        assert name in error_of(lambda: checkpoint.load(saved))

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert "no checkpoint" in error_of(lambda: checkpoint.load(tmp_path / "nothing"))
        assert "not a checkpoint" in error_of(lambda: checkpoint.load(tmp_path))
        assert "not a checkpoint" in error_of(lambda: checkpoint.load(tmp_path / "file"))
        assert "file" in error_of(lambda: checkpoint.load(tmp_path / "file" / "x"))


def tamper(
    folder: Path, change: Callable[[dict[str, Any]], Any], arrays: dict[str, Any] | None = None
) -> None:
    """Change the manifest (and the arrays) as somebody would who knows how to make the digests fit."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if arrays is not None:
        with (folder / "arrays.safetensors").open("wb") as file:
            entry = tensors.write(file, arrays)
        manifest["files"]["arrays.safetensors"] = {"size": entry.size, "sha256": entry.sha256}
    change(manifest)
    version = manifest.pop("version", None)
    del manifest["format"], manifest["sha256"]
    (folder / "manifest.json").write_bytes(checkpoint.seal(manifest, version=version))


def nothing(manifest: dict[str, Any]) -> None:
    pass


class TestTampering:
    """Checkpoints whose digests are right and whose content is not."""

    def test_the_helper_leaves_a_good_checkpoint_good(self, saved: Path) -> None:
        tamper(saved, nothing, checkpoint.load(saved).arrays)
        assert len(checkpoint.load(saved).arrays) == 3

    @pytest.mark.parametrize("changed", ["missing", "extra", "shape", "dtype"])
    def test_arrays_that_are_not_as_the_manifest_says(self, saved: Path, changed: str) -> None:
        held = dict(checkpoint.load(saved).arrays)
        if changed == "missing":
            del held["a/w"]
        elif changed == "extra":
            held["a/x"] = np.zeros(3)
        elif changed == "shape":
            held["a/w"] = held["a/w"].reshape(3, 2)
        else:
            held["a/w"] = held["a/w"].view(np.int32)
        tamper(saved, nothing, held)
        said = error_of(lambda: checkpoint.load(saved))
        assert ("'a/x'" if changed == "extra" else "'a/w'") in said
        assert {"missing": "is missing", "extra": "holds the array"}.get(changed, f"has {changed}") in said

    def test_a_newer_format_names_both_versions(self, saved: Path) -> None:
        tamper(saved, lambda m: m.update(version=checkpoint.VERSION + 6))
        assert re.search(r"format 7, this Shoal reads 1", error_of(lambda: checkpoint.load(saved)))

    @pytest.mark.parametrize("version", [0, "1", None, 1.5])
    def test_a_version_that_never_was(self, saved: Path, version: Any) -> None:
        tamper(saved, lambda m: m.update(version=version))
        assert "version" in error_of(lambda: checkpoint.load(saved))

    @pytest.mark.parametrize(
        "name",
        [
            "../outside.safetensors",
            "/outside.safetensors",
            "sub/../../outside.safetensors",
            "..",
            ".hidden.safetensors",
            "",
            "outside.safetensors\x00",
            "arrays.pickle",
            "..\\outside.safetensors",
        ],
    )
    def test_paths_do_not_leave_the_folder(self, saved: Path, name: str) -> None:
        content = (saved / "arrays.safetensors").read_bytes()
        (saved.parent / "outside.safetensors").write_bytes(content)

        def rename(manifest: dict[str, Any]) -> None:
            manifest["files"] = {name: manifest["files"]["arrays.safetensors"]}
            for entry in manifest["arrays"].values():
                entry["file"] = name

        tamper(saved, rename)
        assert "plain name" in error_of(lambda: checkpoint.load(saved))

    def test_links_and_pipes_are_not_read(self, saved: Path) -> None:
        place = saved / "arrays.safetensors"
        place.rename(saved.parent / "outside")
        place.symlink_to(saved.parent / "outside")
        assert "symbolic link" in error_of(lambda: checkpoint.load(saved))
        place.unlink()
        os.mkfifo(place)
        assert "plain file" in error_of(lambda: checkpoint.load(saved))

    @FEW
    @given(
        field=st.sampled_from(["info", "files", "arrays"]),
        value=st.sampled_from([None, 1, [], "x", {"a": 1}]),
    )
    def test_fields_of_the_wrong_kind(self, field: str, value: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            checkpoint.save(path, {"a": np.zeros(2)}, {})
            tamper(path, lambda m: m.update({field: value}))
            if field == "info" and isinstance(value, dict):
                assert checkpoint.load(path).info == value
            else:
                assert "manifest.json" in error_of(lambda: checkpoint.load(path))

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "object", "shape": [2], "file": "arrays.safetensors"},
            {"dtype": ["float32"], "shape": [2], "file": "arrays.safetensors"},
            {"dtype": "float64", "shape": [-2], "file": "arrays.safetensors"},
            {"dtype": "float64", "shape": 2, "file": "arrays.safetensors"},
            {"dtype": "float64", "shape": [True], "file": "arrays.safetensors"},
            {"dtype": "float64", "shape": [2], "file": ["arrays.safetensors"]},
            {"dtype": "float64", "shape": [2], "file": "other.safetensors"},
            7,
        ],
    )
    def test_array_entries_of_the_wrong_kind(self, saved: Path, entry: Any) -> None:
        tamper(saved, lambda m: m["arrays"].update(b=entry))
        assert "'b'" in error_of(lambda: checkpoint.load(saved))

    @pytest.mark.parametrize(
        "header",
        [
            b"[]",
            b"{}",
            b"not json",
            b"[" * 100_000,
            b'{"a":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8000000000000]}}',
            b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[8,16]}}',
            b'{"a":{"dtype":"F64","shape":[-1,-2],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"F64","shape":[2.0],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"PICKLE","shape":[2],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"F64","shape":[2]}}',
        ],
    )
    def test_headers_that_lie(self, tmp_path: Path, header: bytes) -> None:
        content = len(header).to_bytes(8, "little") + header + bytes(16)
        place = tmp_path / "arrays.safetensors"
        place.write_bytes(content)
        said = error_of(lambda: tensors.read(place, tensors.FileEntry(len(content), "0" * 64)))
        assert "arrays.safetensors is damaged" in said

    def test_a_header_length_beyond_the_file(self, tmp_path: Path) -> None:
        place = tmp_path / "arrays.safetensors"
        place.write_bytes(b"\xff" * 16)
        assert "damaged" in error_of(lambda: tensors.read(place, tensors.FileEntry(16, "0" * 64)))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class TestNoCode:
    def test_loading_neither_unpickles_nor_imports_nor_evaluates(self, saved: Path) -> None:
        template = {"w": np.zeros((2, 3), np.float32), "n": np.int64(0)}
        checkpoint.load(saved)  # once before, for whatever the libraries import when first used
        used: list[str] = []

        def forbidden(name: str) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                used.append(name)
                raise AssertionError(f"{name} was called")

            return called

        def known_only(name: str, *args: Any) -> Any:
            if name not in sys.modules:
                forbidden(f"import {name}")()
            return real_import(name, *args)

        real_import = builtins.__import__
        with contextlib.ExitStack() as stack:
            for module in (pickle, _pickle):
                for name in ("load", "loads", "Unpickler"):
                    stack.enter_context(mock.patch.object(module, name, forbidden(f"pickle.{name}")))
            stack.enter_context(mock.patch.object(np, "load", forbidden("np.load")))
            patches = [mock.patch.object(builtins, n, forbidden(n)) for n in ("eval", "exec", "compile")]
            patches.append(mock.patch.object(builtins, "__import__", known_only))
            for patch in patches:
                stack.enter_context(patch)
            loaded = checkpoint.load(saved)
            back = checkpoint.restore(template, loaded.arrays, "a")
            tree = checkpoint.nested(loaded.arrays, "")
        assert used == [] and back["n"] == 7 and tree["b"].shape == (4,)

    @pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
    def test_a_pickle_in_a_files_place_is_only_damage(self, saved: Path, name: str) -> None:
        mark = saved.parent / "mark"
        bomb = pickle.dumps(Bomb(mark))
        (saved / name).write_bytes(bomb)
        assert name in error_of(lambda: checkpoint.load(saved))
        if name.startswith("arrays"):
            entry = {"size": len(bomb), "sha256": "0" * 64}
            tamper(saved, lambda m: m["files"].update({name: entry}))
            assert name in error_of(lambda: checkpoint.load(saved))
        assert not mark.exists()


class TestSaving:
    def test_replaces_a_checkpoint(self, saved: Path) -> None:
        checkpoint.save(saved, {"x": np.zeros(1)}, {"step": 4})
        assert checkpoint.load(saved).info == {"step": 4}
        assert entries(saved.parent) == ["saved"]

    def test_through_a_link_replaces_what_it_points_to(self, saved: Path) -> None:
        link = saved.parent / "best"
        link.symlink_to(saved)
        checkpoint.save(link, {}, {"step": 5})
        assert link.is_symlink() and checkpoint.load(saved).info == checkpoint.load(link).info == {"step": 5}

    def test_never_replaces_what_is_no_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "thesis.tex").write_text("years")
        (tmp_path / "file").write_text("x")
        assert "not a checkpoint" in error_of(lambda: checkpoint.save(tmp_path / "work", {}, {}))
        assert "is a file" in error_of(lambda: checkpoint.save(tmp_path / "file", {}, {}))
        assert (tmp_path / "work" / "thesis.tex").read_text() == "years"
        assert entries(tmp_path) == ["file", "work"]

    @pytest.mark.parametrize(
        "work",
        [
            {"manifest.json": '{"name": "an extension"}'},
            {"manifest.json": '{"format": "shoal-checkpoint"}', "work.js": "..."},
            {"manifest.json": "{"},
        ],
    )
    def test_never_replaces_what_has_a_manifest_of_another_kind(
        self, tmp_path: Path, work: dict[str, str]
    ) -> None:
        folder = tmp_path / "work"
        folder.mkdir()
        for name, text in work.items():
            (folder / name).write_text(text)
        assert "not a checkpoint" in error_of(lambda: checkpoint.save(folder, {"a": np.zeros(2)}, {}))
        assert {child.name: child.read_text() for child in folder.iterdir()} == work

    def test_hidden_folders_beside_it_are_let_be(self, tmp_path: Path) -> None:
        for name in (".data.old", ".venv.old", "venv"):
            (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / "place", {"a": np.zeros(2)}, {})
        assert {child.name for child in tmp_path.iterdir()} == {".data.old", ".venv.old", "venv", "place"}

    def test_makes_parents_and_says_where_it_cannot(self, tmp_path: Path) -> None:
        checkpoint.save(tmp_path / "a" / "b" / "c", {}, {})
        checkpoint.load(tmp_path / "a" / "b" / "c")
        (tmp_path / "file").write_text("x")
        assert "could not save" in error_of(lambda: checkpoint.save(tmp_path / "file" / "x", {}, {}))

    @pytest.mark.parametrize("call", range(1, 5))
    @pytest.mark.parametrize("exists", [False, True])
    def test_a_full_disk_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, exists: bool
    ) -> None:
        """Full at each fsync: of the arrays, of the manifest, of the new folder, of its parent."""
        path = tmp_path / "x"
        if exists:
            checkpoint.save(path, {"a": np.zeros(3)}, {"n": 1})
        calls = iter(range(1, 100))
        real = os.fsync

        def full(descriptor: int) -> None:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            said = error_of(lambda: checkpoint.save(path, {"a": np.ones(3)}, {"n": 2}))
        assert "No space left on device" in said and "untouched" in said
        # The last fsync fails when the new checkpoint is in its place already: either is whole.
        whole = [1] if exists and call < 4 else [1, 2] if exists else [2] if call == 4 else []
        if whole:
            assert checkpoint.load(path).info["n"] in whole
        else:
            assert "no checkpoint" in error_of(lambda: checkpoint.load(path))
        checkpoint.save(path, {}, {"n": 3})
        assert entries(tmp_path) == ["x"]

    def test_a_write_that_the_system_cuts_short(self, saved: Path) -> None:
        before = {p.name: p.read_bytes() for p in saved.iterdir()}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            said = error_of(lambda: checkpoint.save(saved, {"a": np.zeros(100_000)}, {}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.strerror(errno.EFBIG) in said
        assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
        assert entries(saved.parent) == ["saved"]

    def test_an_interrupt_leaves_nothing_behind(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tensors, "write", interrupted)
            checkpoint.save(saved, {}, {})
        assert entries(saved.parent) == ["saved"] and checkpoint.load(saved).info == {"step": 3}

    def test_a_failed_second_rename_puts_the_old_one_back(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Path.rename

        def rename(self: Path, target: Path) -> Path:
            if target == saved and self.suffix == ".tmp":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            assert "Input/output error" in error_of(lambda: checkpoint.save(saved, {}, {}))
        assert entries(saved.parent) == ["saved"] and checkpoint.load(saved).info == {"step": 3}

    def test_living_writers_are_left_alone(self, tmp_path: Path) -> None:
        with storage.replacing(tmp_path / "slow") as folder:
            (folder / "half").write_text("written")
            checkpoint.save(tmp_path / "quick", {}, {})
            assert (folder / "half").exists()
        assert entries(tmp_path) == ["quick", "slow"]

    def test_many_writers_of_one_checkpoint(self, tmp_path: Path) -> None:
        """Each either succeeds or is told that another writes; what is left is whole and alone."""
        said: list[str] = []

        def work(number: int) -> None:
            for _ in range(10):
                try:
                    checkpoint.save(tmp_path / "x", {"a": np.full(100, number)}, {"n": number})
                except ShoalError as error:
                    said.append(str(error))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loaded = checkpoint.load(tmp_path / "x")
        assert (loaded.arrays["a"] == loaded.info["n"]).all()
        assert all("\n" not in line and "could not save" in line for line in said)
        checkpoint.save(tmp_path / "x", {}, {})
        assert entries(tmp_path) == ["x"]

    def test_remove(self, saved: Path) -> None:
        checkpoint.remove(saved)
        checkpoint.remove(saved)
        assert entries(saved.parent) == []

    def test_removing_is_one_rename_whatever_happens_after_it(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            checkpoint.remove(saved)
        assert storage.find(saved) is None and len(entries(saved.parent)) == 1
        checkpoint.save(saved, {}, {})
        assert entries(saved.parent) == ["saved"]


# Forks, so that what costs seconds (importing JAX) happens once: told "MOMENT BEGIN", a fresh child saves
# checkpoints of the numbers BEGIN + 1, ...; with MOMENT -1 until it is killed, else it kills itself before
# the MOMENT-th change to the file system of its first save.
WRITER = """
import os, signal, sys
import numpy as np
from shoal import checkpoint
checkpoint.FILE_BYTES = 60_000
path, begin = sys.argv[1], 0
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
print("ready", flush=True)
for line in sys.stdin:
    moment, begin = map(int, line.split())
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, args):
            global seen
            if event in CHANGES:
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        if moment >= 0:
            sys.addaudithook(hook)
        number = begin
        while True:
            number += 1
            tree = {str(i): np.full(5000, number, np.float64) for i in range(4)}
            checkpoint.save(path, tree, {"n": number})
            os.write(1, b"saved %d\\n" % number)
            if moment >= 0:
                os._exit(0)
    os.write(1, b"pid %d\\n" % child)
    os.write(1, b"end %d\\n" % os.waitpid(child, 0)[1])
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "x"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield path, process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def talk(process: subprocess.Popen[bytes], line: str) -> Iterator[tuple[str, int]]:
    """What the writer says after being told `line`, until its child has ended."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()
    while True:
        word, number = process.stdout.readline().split()
        yield word.decode(), int(number)
        if word == b"end":
            return


def whole(path: Path) -> int:
    """The number of the checkpoint at `path`, all of whose arrays must hold it."""
    loaded = checkpoint.load(path)
    assert len(loaded.arrays) == 4
    assert all((array == loaded.info["n"]).all() for array in loaded.arrays.values())
    return loaded.info["n"]


class TestKill:
    def test_at_random_moments(self, writer: tuple[Path, subprocess.Popen[bytes]]) -> None:
        path, process = writer
        rng = random.Random(0)
        number = kills = leftovers = 0
        limit = time.monotonic() + 4.0
        while time.monotonic() < limit and kills < 100:
            saved, pid, killed, begin = number, 0, False, time.monotonic()
            wait = rng.uniform(0.0, 0.1)
            for word, value in talk(process, f"-1 {number}"):
                if word == "pid":
                    pid = value
                if word == "saved":
                    saved = value
                # Not before the very first is there: then there is nothing yet to lose.
                if pid and saved and not killed:
                    time.sleep(max(0.0, begin + wait - time.monotonic()))
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            kills += 1
            leftovers += len(entries(path.parent)) > 1
            number = whole(path)
            assert number >= saved
        assert kills >= 10 and leftovers >= 3, "the kills did not fall into saves"
        checkpoint.save(path, {}, {})
        assert entries(path.parent) == ["x"]

    def test_before_every_change_to_the_file_system(
        self, writer: tuple[Path, subprocess.Popen[bytes]]
    ) -> None:
        path, process = writer
        ends = []
        for moment in range(200):
            checkpoint.save(path, {str(i): np.full(5000, 1.0) for i in range(4)}, {"n": 1})
            ends.append([value for _, value in talk(process, f"{moment} 1")][-1])
            assert whole(path) in ((2,) if ends[-1] == 0 else (1, 2))
            if ends[-1] == 0:
                break
            # A folder that was left aside is found by name, and the next save beside it tidies up.
            assert "x" in storage.names(path.parent)
            checkpoint.save(path.parent / "other", {}, {})
            assert whole(path) in (1, 2)
            assert entries(path.parent) == ["other", "x"]
        assert ends[-1] == 0 and len(ends) > 15
        assert all(status == signal.SIGKILL for status in ends[:-1])


def test_names_are_tame() -> None:
    """Whatever a key is called, its path splits back into the same keys."""
    for key in (string.printable, "a/b", "~1", "~01", "/", "~", ""):
        name = checkpoint.flatten({"p": {key: np.zeros(1)}})
        assert list(checkpoint.nested(name, "p")) == [key]
