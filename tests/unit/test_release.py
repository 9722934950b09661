"""The version and the changelog agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_topmost_section_of_the_changelog_is_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert sections[0] == version


def test_the_files_that_the_page_for_contributors_names_exist():
    page = (ROOT / "docs" / "contributing.md").read_text()
    named = re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)`", page)

    assert len(named) > 20
    assert [
        path
        for path in named
        if not path.startswith(("unit/", "contract/", "flow/", "chaos/", "benchmarks/")) and not (ROOT / path).exists()
    ] == []
