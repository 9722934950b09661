"""What the image is made of: no secrets of the machine that builds it, and libraries with known hashes only."""

from pathlib import Path

from runtime.private_files import make_private

ROOT = Path(__file__).parents[3]


def test_secrets_stay_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env*", ".local"} <= set(ignored)


def test_the_images_libraries_have_known_hashes() -> None:
    assert "--require-hashes" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_a_directory_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    directory = tmp_path / "local"
    directory.mkdir(mode=0o755)
    make_private(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
