"""What the README and the docs say is true: their Python runs, their commands parse, their tables are the
code's own, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal import algorithms, cli, cli_options, cli_parsing, cli_solve, rllib_config

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CHINESE = ROOT / "README.zh-CN.md"


@dataclass(frozen=True)
class Block:
    """A fenced block: the language behind its fence, its text, and the line of its first line."""

    page: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    language, begin, lines = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, begin, lines = line[3:].strip(), number + 1, []
        else:
            yield Block(page, language, "\n".join(lines), begin)
            language = None
    assert language is None, f"{page}: a block is not closed"


BLOCKS = [block for page in PAGES for block in blocks(page)]
WITH_PYTHON = sorted({b.page for b in BLOCKS if b.language == "python"} - {CHINESE})


def name_of(page: Any) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


# It compares the bits of two programs, Local's and Compiled's.
AS_IN_USE = ROOT / "docs" / "design.md"
PYTHON = [
    pytest.param(page, marks=pytest.mark.as_in_use) if page == AS_IN_USE else page for page in WITH_PYTHON
]


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            # Blank lines before it, so that a traceback names the page's own line.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec"), namespace)


def test_every_block_has_a_language_that_is_checked() -> None:
    """text is output and diagrams; anything else would go unchecked."""
    assert {b.language for b in BLOCKS} <= {"python", "bash", "text"}


def test_the_chinese_readme_shows_the_same_code() -> None:
    def code(page: Path) -> list[tuple[str, str]]:
        return [(b.language, re.sub(r"\s*#.*", "", b.text)) for b in blocks(page) if b.language != "text"]

    assert code(CHINESE) == code(ROOT / "README.md")
    links = [set(re.findall(r"\]\(([^)]*)\)", p.read_text())) for p in (CHINESE, ROOT / "README.md")]
    assert links[0] - {"README.md"} == links[1] - {"README.zh-CN.md"}


# Commands


def commands() -> list[tuple[Block, list[str]]]:
    found = []
    for block in BLOCKS:
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((block, words))
    return found


def check_shoal(words: list[str]) -> None:
    """Parsed as the program parses it, without running."""
    name, *rest = words
    assert name in cli.COMMANDS or name == "--help", name
    if name == "train":
        algorithm, *rest = rest
        cli_parsing.parse({**cli_options.TRAIN, "algorithm": algorithms.load(algorithm)}, rest, name, "")
    elif name == "show":
        algorithm, *rest = rest
        parts = {"show": cli_options.Show, "algorithm": algorithms.load(algorithm)}
        assert not rest or cli_parsing.parse(parts, rest, name, "")
    elif name == "resume":
        cli_parsing.parse(cli_options.RESUME, rest, name, "")
    elif name != "--help":
        options = {"evaluate": cli_options.Evaluate, "plot": cli_options.Plot, "list": cli_options.List}
        options["solve"] = cli_solve.Solve
        cli_parsing.parse({name: options[name]}, rest, name, "")


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert words and all(word in targets for word in words if "=" not in word), words


def check_ray(words: list[str]) -> None:
    """Parsed as Ray's own program parses it."""
    from ray.scripts.scripts import cli as group

    command: Any = group
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, words)


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for wanted in re.findall(r"(?<!ray)\[([^\]]*)\]", " ".join(words)):
        assert set(wanted.split(",")) <= set(extras), wanted


def check_python(words: list[str]) -> None:
    assert words[0] == "-m" or (ROOT / words[0]).is_file(), words


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "shoal": check_shoal,
    "make": check_make,
    "pip": check_pip,
    "ray": check_ray,
    "python": check_python,
}


@pytest.mark.parametrize(("block", "words"), commands(), ids=lambda x: x if isinstance(x, str) else None)
def test_commands_parse(block: Block, words: list[str]) -> None:
    assert words[0] in CHECKS, f"{block}: nobody checks {words[0]}"
    CHECKS[words[0]](words[1:])


# Tables


def settings_table(name: str) -> str:
    """An algorithm's settings as they stand on its page."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for setting, _, default, text in cli_parsing.documented(algorithms.load(name)):
        rows.append(f"| `{setting}` | `{default}` | {' '.join(text.split())} |")
    return "\n".join(rows)


@pytest.mark.parametrize("name", algorithms.REGISTRY)
def test_every_algorithm_has_a_page_with_its_settings(name: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()
    table = settings_table(name)
    assert table in page, f"the table in docs/algorithms/{name}.md should be:\n{table}"


def test_every_key_of_rllibs_that_is_translated_is_told() -> None:
    page = (ROOT / "docs" / "coming-from.md").read_text()
    keys = {*rllib_config._ALGORITHM, *rllib_config._SHAPE, *rllib_config._OTHER, *rllib_config._ALIASES}
    keys |= {*rllib_config._MODEL, *rllib_config._FIXED}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_every_speed_was_measured() -> None:
    measured = " ".join(page.read_text() for page in (ROOT / "benchmarks" / "results").glob("*.md"))
    tables = []
    for page in (CHINESE, ROOT / "README.md"):
        told = re.search(r"<!-- speeds.*?-->(.*)<!-- /speeds -->", page.read_text(), re.S)
        assert told is not None, page
        tables.append(re.findall(r"\d+[.,]\d+", told[1]))
        for number in tables[-1]:
            assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", measured), number
    assert tables[0] == tables[1] != []


# Links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name_of(page)}: {target}"


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 80_000, picture
