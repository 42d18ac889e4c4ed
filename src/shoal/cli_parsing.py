"""Parsing the command line into dataclasses of options: every mistake is one line, never a box.

A flag is a field, and its help is the string below it. So each of an algorithm's hyper-parameters is a flag,
parsed beside those of `cli_options`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, SuppressFixed
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from shoal.elsewhere import meant
from shoal.errors import ShoalError, did_you_mean


def parse(
    parts: Mapping[str, type],
    argv: Sequence[str],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments -> for each part an instance of its dataclass. Prints help and exits where asked for it.

    defaults: instances whose values hold where nothing is given, for parts whose own shall not.
    Raises ShoalError, with one line, for anything that does not fit.
    """
    defaults = defaults or {}
    argv = bare(argv, "--plot", "--video")
    check_flags(parts, argv)
    fields = [
        (name, cls, dataclasses.field(default=defaults[name]) if name in defaults else dataclasses.field())
        for name, cls in parts.items()
    ]
    command = dataclasses.make_dataclass("Command", fields, frozen=True, kw_only=True)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _registry():
            parsed = tyro.cli(
                command,
                prog=prog,
                description=description,
                args=argv,
                config=(OmitArgPrefixes, SuppressFixed),
            )
    except SystemExit as stop:
        if not stop.code:  # help was asked for
            raise
        raise ShoalError(one_line(box.getvalue(), prog)) from None
    return {name: getattr(parsed, name) for name in parts}


def bare(argv: Sequence[str], *flags: str) -> list[str]:
    """Give flags that stand without a value an empty one: --plot becomes --plot= ."""
    follows = [*argv, "--"][1:]
    return [f"{a}=" if a in flags and n.startswith("--") else a for a, n in zip(argv, follows, strict=True)]


def flags(parts: Mapping[str, type]) -> dict[str, Any]:
    """Every flag -> the type of its field."""
    known: dict[str, Any] = {"--help": bool}
    for cls in parts.values():
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            name = field.name.replace("_", "-")
            known[f"--{name}"] = hints[field.name]
            if hints[field.name] is bool:
                known[f"--no-{name}"] = bool
    return known


def check_flags(parts: Mapping[str, type], argv: Sequence[str]) -> None:
    """Raises ShoalError for the first flag that does not exist, or that only Python can give."""
    known = flags(parts)
    for token in argv:
        flag = token.partition("=")[0].replace("_", "-")
        if not re.match(r"--[a-z]", flag):
            continue
        if flag not in known:
            raise ShoalError(f"unknown option {flag}: {meant(flag[2:], [name[2:] for name in known])}")
        if "Callable" in str(known[flag]):
            raise ShoalError(f"{flag} is a function: it can be given in Python only")


def integer(text: str) -> int:
    """500000, 500_000 or 5e5; raises ValueError for anything else."""
    if re.fullmatch(r"\d+(\.\d*)?e\d+", text) and float(text).is_integer():
        return int(float(text))
    return int(text)


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def whole(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda texts: integer(texts[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def one_line(box: str, prog: str) -> str:
    """What a box of tyro's says, in one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [re.sub(r"^[│|]\s?|\s*[│|]?\s*$", "", row) for row in plain.splitlines() if row.strip()]
    framed = bool(rows) and rows[0][:1] in "╭+"  # else the title is a section of its own
    sections = "\n".join(row for row in rows if row and not re.match(r"[╭╰+]", row))
    sections = [" ".join(s.split()) for s in re.split(r"\n\s*[─-]{5,}\n", sections)]
    message = sections[0 if framed or len(sections) == 1 else 1]
    if found := re.match(r"Error parsing (\S+?): (.*)", message):
        flag, why = found.groups()
        if not flag.startswith("-"):  # an algorithm as a whole: its own words say which setting
            return why
        given = re.search(r"(?:from|arguments:) \[(.*?)\]", why) or re.search(r": ('[^']*')", why)
        form = re.search(rf"helptext: {re.escape(flag)}(?:, \S+)* (\[.*?\]\]|\S+)(?: |$)", " ".join(sections))
        if given and form:
            return f"{flag}: expected {_in_words(form[1])}, got {given[1]}"
        return f"{flag}: {why}"
    if found := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?)\)", message):
        value, flag, choices = found.groups()
        near = did_you_mean(value, re.findall(r"'([^']*)'", choices))
        return f"{flag}: unknown value {value!r}: {near}"
    if found := re.match(r"Missing value for argument [('\s]*([\w-]+)", message):
        return f"{found[1]} needs a value"
    if found := re.match(r"Missing from .*?: (\S+)", message):
        return f"{prog} needs {found[1]}; {prog} --help says more"
    if found := re.match(r"Unrecognized options: (.*)", message):
        return f"unexpected argument {found[1]}"
    return message


def _in_words(form: str) -> str:
    names = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "{None}": "None", "{auto}": "auto"}
    if form.startswith("["):
        return {"[INT [INT ...]]": "whole numbers", "[FLOAT [FLOAT ...]]": "numbers"}.get(form, form)
    parts = [names.get(part, part) for part in form.split("|")]
    return " or ".join(sorted(parts, key=lambda part: part == "None"))


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """["a=1", "b=true", "c=x"] -> {"a": 1, "b": True, "c": "x"}: JSON or Python literals, else text."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ShoalError(f"--env-kwargs: expected key=value, got {pair!r}")
        values[key] = _literal(text)
    return values


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(text)
    return text


def documented(cls: type) -> list[tuple[str, str, str, str]]:
    """A dataclass's fields as (name, type, default, help): the help is the string below the field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    rows = []
    for i, node in enumerate(body.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = body.body[i + 1] if i + 1 < len(body.body) else None
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = inspect.cleandoc(str(below.value.value))
        default = "" if node.value is None else ast.unparse(node.value)
        rows.append((node.target.id, ast.unparse(node.annotation), default, text))
    return rows
