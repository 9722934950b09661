"""Every distribution that the code imports is declared in pyproject.toml, where its importers may rely on it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def _normalized(name: str) -> str:
    """The form in which package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_normalized(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) for text in requirements}


def _imports(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module.partition(".")[0]


OWN = {*PACKAGES, "tests", "usage_billing_client"}


def _undeclared(folder: str, declared: set[str], own: set[str] = OWN) -> set[str]:
    own = own | sys.stdlib_module_names
    distributions = packages_distributions()
    return {
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in _imports(ROOT / folder)
        if module not in own and not {_normalized(name) for name in distributions.get(module, [module])} & declared
    }


REQUIRED = _names(PROJECT["project"]["dependencies"])
STANDIN = tomllib.loads((ROOT / "tools/stripe-standin/pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        # A demo plan reads its own data set, and the local stack its own engine: both are extras.
        *[(package, ["demo"] if package == "usage_billing" else []) for package in PACKAGES if package != "deploy"],
        ("deploy", ["local"]),
        ("tests", ["local", "demo", "dev"]),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: list[str]):
    declared = REQUIRED.union(*(_names(EXTRAS[extra]) for extra in extras))

    assert _undeclared(folder, declared) == set()


def test_the_stripe_standin_declares_what_it_imports_and_nothing_of_the_product():
    declared = _names([*STANDIN["dependencies"], *STANDIN["optional-dependencies"]["test"]])

    assert _undeclared("tools/stripe-standin", declared, {"stripe_standin", "standin_tests"}) == set()
