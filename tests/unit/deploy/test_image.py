"""What the image is made of: no secrets of the machine that builds it, and libraries with known hashes only."""

import tomllib
from pathlib import Path

from runtime.private_files import make_private

ROOT = Path(__file__).parents[3]


def test_secrets_stay_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env*", ".local"} <= set(ignored)


def test_tests_and_the_stand_in_stay_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"tests", "tools"} <= set(ignored)


def test_tests_and_the_stand_in_stay_out_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = {path.name for package in packages for path in (ROOT / package).rglob("*") if path.is_dir()}
    assert not {"tests", "standin_tests", "client_tests", "stripe_standin"} & {*packages, *folders}
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path for path in files if path.name.startswith(("test_", "conftest"))] == []


def test_whatever_is_installed_has_known_hashes() -> None:
    """The tools that build the image, too: they decide what is in it."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [command for line in lines for command in line.split("&&") if " install " in command]
    assert len(installs) == 3
    assert all("--require-hashes" in each or "--no-deps --no-index" in each for each in installs)
    for name in ("deploy/build-requirements.txt", "constraints.txt"):
        pins = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
        assert all("--hash=sha256:" in pin for pin in pins if "==" in pin)


def test_a_directory_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    directory = tmp_path / "local"
    directory.mkdir(mode=0o755)
    make_private(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
