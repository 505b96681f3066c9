"""The documentation's commands and files are what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from cryobench.conf.compose import load_dataset, load_encoder, load_sweep
from cryobench.orchestrator.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language == "sh":
                found += [line.split(" #")[0].strip() for line in text.splitlines()]
        found += re.findall(r"`(cryobench [a-z][^`]*)`", page.read_text())
    return sorted({line for line in found if line.startswith("cryobench ")})


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_one(line: str) -> None:
    command = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "commands") and arguments and arguments[0] in command.commands:
        command = command.commands[arguments.pop(0)]
    assert not hasattr(command, "commands"), f"{line}: names no command"
    context = command.make_context("cryobench", arguments)
    overrides = context.params.get("overrides") or []
    if overrides and "my_" not in line:
        assert load_sweep(overrides).name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readmes_own_files_work(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = [body for language, body in BLOCK.findall(text) if language == "yaml"]
    for group, name, body in zip(("dataset", "encoder"), ("my_lakes", "my_vit"), blocks, strict=True):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(body)
    assert load_dataset("my_lakes", tmp_path).mask_codes == {0: 0, 255: 1}
    assert load_encoder("my_vit", tmp_path).variants["optical"].weights is not None
    sweep = load_sweep(["sweep=paper_frozen", "datasets=[my_lakes]", "encoders=[my_vit,unet]"], tmp_path)
    assert [e.name for e in sweep.encoders] == ["my_vit", "unet"]


def test_the_makefile_lists_its_targets() -> None:
    text = (ROOT / "Makefile").read_text()
    listed = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert {"setup", "demo", "test", "test-all", "lint", "typecheck", "bench", "help"} <= listed
