"""Logs of the local stack stay bounded while their writers go on."""

from pathlib import Path

from deploy.local.process import tail
from deploy.local.supervisor import keep_short


def test_a_long_log_is_cut_and_its_newest_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    with path.open("ab") as writer:
        writer.write(b"".join(b"line %05d\n" % number for number in range(1000)))
        writer.flush()
        assert keep_short(path, bytes_max=2000)
        writer.write(b"after\n")
    kept = (tmp_path / "service.log.1").read_text().splitlines()
    assert kept[-1] == "line 00999"
    assert 80 <= len(kept) <= 100
    assert path.read_text() == "after\n"


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_text("one\ntwo\n")
    assert not keep_short(path, bytes_max=2000)
    assert path.read_text() == "one\ntwo\n"


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_text("".join(f"{number}\n" for number in range(100)))
    assert tail(path, lines=2) == "98\n99"
    assert tail(tmp_path / "none.log") == ""
