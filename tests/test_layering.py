"""Imports point downward only, between folders and between their wings; Ray and MLflow stay in orchestrator."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Each folder, and below it each wing or single module, with what it may import besides itself.
ALLOWED = {
    "conf": {},
    "datasets": {"conf": ...},
    "encoders": {"conf": ...},
    "workers": {"conf": ..., "datasets": ..., "encoders": ...},
    "orchestrator": {"conf": ..., "datasets": ..., "encoders": ..., "workers": ...},
}
WINGS: dict[str, dict[str, set[str]]] = {
    "datasets": {
        "raw": set(),
        "store": {"raw"},
        "batches": {"raw", "store"},
        "synth": {"raw", "store"},
        "show": {"raw", "store"},
    },
    "workers": {
        "place": {"record"},
        "termination": set(),
        "record": set(),
        "model": set(),
        "training": {"place", "record", "model"},
        "trial": {"place", "record", "model", "training"},
    },
    "orchestrator": {
        "formatting": set(),
        "places": set(),
        "sweep_record": set(),
        "supply": {"places", "sweep_record", "formatting"},
        "results": {"places", "sweep_record", "formatting", "supply"},
        "sweep": {"places", "sweep_record", "formatting", "supply", "results"},
        "commands": {"places", "sweep_record", "formatting", "supply", "results", "sweep"},
        "cli": {"commands"},
    },
}
ORCHESTRATOR_ONLY = {"ray", "mlflow", "typer", "duckdb"}
#: The one pair of names that two folders share: what a trial is, and the function that runs one.
SHARED_NAMES = {"trial"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_downward(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        wing = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for name in imported(path):
            parts = name.split(".")
            where = f"{path.relative_to(ROOT)} imports {name}"
            if parts[0] == "cryobench":
                assert parts[1] == package or parts[1] in ALLOWED[package], where
                if parts[1] == package and package in WINGS:
                    assert parts[2] == wing or parts[2] in WINGS[package][wing], where
            if parts[0] in ORCHESTRATOR_ONLY:
                assert package == "orchestrator", where


@pytest.mark.parametrize("package", WINGS)
def test_every_wing_has_its_place(package: str) -> None:
    found = {p.relative_to(ROOT / package).parts[0].removesuffix(".py") for p in (ROOT / package).rglob("*.py")}
    assert found - {"__init__"} == set(WINGS[package])


def test_a_name_is_unique_in_the_house() -> None:
    names = Counter(p.stem for top in ALLOWED for p in (ROOT / top).rglob("*.py") if p.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} <= SHARED_NAMES


def test_every_package_is_in_the_distribution() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(p.parent.relative_to(ROOT)) for top in ALLOWED for p in (ROOT / top).rglob("__init__.py")}
    assert set(settings["package-dir"].values()) == folders
    assert set(settings["packages"]) == set(settings["package-dir"])
