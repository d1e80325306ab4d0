"""The documents speak of commands, options, files and links that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from fa_tuner.cli.app import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "studies").glob("*/README.md")])
COMMANDS = typer.main.get_command(app)


def command_lines(text: str) -> list[list[str]]:
    """Every `fa-tune ...` line of the code blocks, continuation lines joined, comments gone."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip().startswith("fa-tune ")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_exist(path: Path) -> None:
    for words in command_lines(path.read_text(encoding="utf-8")):
        command = COMMANDS.commands[words[1]]  # type: ignore[attr-defined]
        if hasattr(command, "commands"):  # such as `fa-tune keys create`
            command = command.commands[words[2]]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for word in words[2:]:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{path.name}: fa-tune {words[1]} has no {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_readme_shows_every_command() -> None:
    shown = {words[1] for words in command_lines((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert shown >= {"run", "studies", "pareto", "recommend", "export", "doctor"}
