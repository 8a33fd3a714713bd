"""What the README tells people to run exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from sealane.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = TEXTS[0].read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_a_make_goal_exists(command: str) -> None:
    goal = command.split()[1]
    assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in COMMANDS if "bin/sealane" in line])
def test_a_command_and_its_options_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    nouns = [word for word in words[:2] if not word.startswith("-") and word != "camera"]
    shown = CliRunner().invoke(cli, [*nouns, "--help"])
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output
    for name in (word for word in words if word.startswith("examples/")):
        assert (ROOT / name).exists()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_a_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make check" in script and "make test" in script and "make demo" in script
