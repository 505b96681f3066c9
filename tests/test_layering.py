"""Imports point downward only; Ray and MLflow stay in orchestrator."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "conf": {"conf"},
    "datasets": {"conf", "datasets"},
    "encoders": {"conf", "encoders"},
    "workers": {"conf", "datasets", "encoders", "workers"},
    "orchestrator": {"conf", "datasets", "encoders", "workers", "orchestrator"},
}
ORCHESTRATOR_ONLY = {"ray", "mlflow", "typer", "duckdb"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_downward(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "cryobench":
                assert parts[1] in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"
            if parts[0] in ORCHESTRATOR_ONLY:
                assert package == "orchestrator", f"{path.relative_to(ROOT)} imports {name}"


def test_every_package_is_in_the_distribution() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(p.parent.relative_to(ROOT)) for top in ALLOWED for p in (ROOT / top).rglob("__init__.py")}
    assert set(settings["package-dir"].values()) == folders
    assert set(settings["packages"]) == set(settings["package-dir"])
