"""What signs sessions outlives a restart, and has nothing to do with the admin key."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import SecretStr

from catalog.record import CatalogRecord
from catalog.view import CatalogView
from dashboard.pages.session import Sessions
from schemas.organization import ApiKey, Scope
from schemas.settings import Settings
from usage_billing.session_secret import FILE_NAME, kept_secret, with_session_secret

KEY = ApiKey(id="key_1", organization_id="default", scopes=(Scope.ADMIN,), sha256="s", hint="0000", created_at=0)


def sessions(directory: Path, **more: SecretStr) -> Sessions:
    view = CatalogView()
    assert view.apply(CatalogRecord(KEY, 0, 0)) is None
    return Sessions(with_session_secret(Settings(local_dir=directory, **more)), view)  # pyright: ignore[reportArgumentType]


def test_a_session_outlives_a_restart_and_another_admin_key(tmp_path: Path) -> None:
    _, cookie = sessions(tmp_path, admin_key=SecretStr("ubk_the_first_admin_key_of_all")).start(KEY)
    after = sessions(tmp_path, admin_key=SecretStr("ubk_another_admin_key_in_its_place"))
    assert after.read(cookie) is not None
    (tmp_path / FILE_NAME).unlink()
    assert sessions(tmp_path).read(cookie) is None


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "made" / FILE_NAME
    with ThreadPoolExecutor(8) as pool:
        (secret,) = set(pool.map(lambda _: kept_secret(path), range(32)))
    assert len(secret) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == [FILE_NAME]


def test_a_secret_that_cannot_be_kept_is_the_processs_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = with_session_secret(Settings(local_dir=tmp_path / "file"))  # pyright: ignore[reportCallIssue]
    assert settings.session_secret is None


def test_a_given_secret_is_taken(tmp_path: Path) -> None:
    given = SecretStr("s" * 40)
    assert with_session_secret(Settings(local_dir=tmp_path, session_secret=given)).session_secret == given  # pyright: ignore[reportCallIssue]
    assert list(tmp_path.iterdir()) == []
