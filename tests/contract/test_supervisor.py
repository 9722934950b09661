"""The supervisor keeps real processes running, ends them in reverse order and never touches another's."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.process import free_ports, identity
from deploy.local.supervisor import Files, Part, PartState, Plan, Stage, State, Step, probe
from tests.waiting import until

Supervise = Callable[[Plan], subprocess.Popen[bytes]]

# Writes a line to order.txt when it starts and when it ends, and answers HTTP in between.
SERVER = """
import http.server, pathlib, signal, sys
name, port = sys.argv[1], int(sys.argv[2])
def note(what):
    with open("order.txt", "a") as file:
        file.write(f"{what} {name}\\n")
def end(*_):
    note("end")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("start")
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "run").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "server.py").write_text(SERVER)
    return Files(tmp_path / "run")


@pytest.fixture
def supervise(files: Files, tmp_path: Path) -> Iterator[Supervise]:
    """Starts a supervisor of the plan; what runs at the end of the test is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(plan: Plan) -> subprocess.Popen[bytes]:
        files.write(files.plan, plan)
        command = [sys.executable, "-m", "deploy.local.supervisor", str(files.directory)]
        with (tmp_path / "supervisor.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def server(name: str, port: int, **more: float) -> Part:
    address = f"http://127.0.0.1:{port}/"
    return Part(name, [sys.executable, "server.py", name, str(port)], {}, address, address, **more)


def plan(tmp_path: Path, *stages: Stage) -> Plan:
    return Plan(list(stages), str(tmp_path), str(tmp_path / "logs"))


def phase(files: Files) -> str | None:
    state = files.read_state()
    return state.phase if state is not None else None


def part(files: Files, name: str) -> PartState:
    state = files.read_state()
    assert state is not None
    return next(each for each in state.parts if each.name == name)


def test_stages_start_in_order_and_end_in_reverse(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    first, second = free_ports(2)
    step = Step("step", [sys.executable, "-c", "open('order.txt', 'a').write('step\\n')"], {})
    running = supervise(plan(tmp_path, Stage([server("a", first)], [step]), Stage([server("b", second)])))
    until(lambda: phase(files) == "ready")
    assert probe(f"http://127.0.0.1:{second}/") is None
    running.terminate()
    assert running.wait(20) == 0
    assert (tmp_path / "order.txt").read_text().split("\n") == ["start a", "step", "start b", "end b", "end a", ""]
    assert phase(files) == "stopped"
    assert not files.supervised()


def test_a_killed_process_is_back_within_two_seconds(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    supervise(plan(tmp_path, Stage([server("a", port)])))
    until(lambda: phase(files) == "ready")
    for starts in (2, 3, 4):
        before = part(files, "a").pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        took = until(
            lambda before=before, starts=starts: (
                part(files, "a").pid not in (None, before) and part(files, "a").starts == starts
            )
        )
        assert took < 2.0
        until(lambda: probe(f"http://127.0.0.1:{port}/") is None)


def test_a_process_that_keeps_ending_fails_the_start_with_its_log(
    files: Files, supervise: Supervise, tmp_path: Path
) -> None:
    broken = Part(
        "broken", [sys.executable, "-c", "raise SystemExit('no such configuration')"], {}, "", "http://127.0.0.1:1/"
    )
    assert supervise(plan(tmp_path, Stage([broken]))).wait(20) == 1
    state = files.read_state()
    assert state is not None
    assert state.phase == "failed"
    assert "broken ended 3 times" in state.reason
    assert "no such configuration" in state.reason


def test_a_failing_step_stops_what_was_started(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    step = Step("migrate", [sys.executable, "-c", "raise SystemExit('table is locked')"], {})
    assert supervise(plan(tmp_path, Stage([server("a", port)], [step]))).wait(20) == 1
    state = files.read_state()
    assert state is not None
    assert "table is locked" in state.reason
    assert probe(f"tcp://127.0.0.1:{port}") is not None


def test_a_silent_process_fails_the_start_in_bounded_time(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    silent = Part("silent", ["sleep", "60"], {}, "", "http://127.0.0.1:1/")
    assert supervise(plan(tmp_path, Stage([silent], ready_seconds_max=0.5))).wait(20) == 1
    state = files.read_state()
    assert state is not None
    assert "silent was not ready after 0.5 s" in state.reason


def test_what_ignores_sigterm_is_killed_with_what_it_started(
    files: Files, supervise: Supervise, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    script = f"trap '' TERM; sleep 300 & echo $! > child.pid; {sys.executable} server.py stubborn {port} & wait; wait"
    address = f"http://127.0.0.1:{port}/"
    stubborn = Part("stubborn", ["sh", "-c", script], {}, address, address, stop_seconds=0.3)
    running = supervise(plan(tmp_path, Stage([stubborn])))
    until(lambda: phase(files) == "ready")
    running.terminate()
    assert running.wait(20) == 0
    child = int((tmp_path / "child.pid").read_text())
    until(lambda: identity(child) is None)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tether is Linux's")
def test_children_end_when_the_supervisor_is_killed(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    running = supervise(plan(tmp_path, Stage([server("a", port)])))
    until(lambda: phase(files) == "ready")
    pid = part(files, "a").pid
    assert pid is not None
    running.kill()
    running.wait()
    until(lambda: identity(pid) is None)
    assert not files.supervised()


def test_a_second_supervisor_refuses_the_directory(files: Files, supervise: Supervise, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    only = plan(tmp_path, Stage([server("a", port)]))
    supervise(only)
    until(lambda: phase(files) == "ready")
    assert supervise(only).wait(20) == 1
    assert phase(files) == "ready"


def test_state_and_plan_are_for_the_owner_only(files: Files) -> None:
    files.write(files.plan, Plan([], "/", "/"))
    files.write(files.state, State(1, None, "ready", "", []))
    assert [path.stat().st_mode & 0o777 for path in (files.plan, files.state)] == [0o600, 0o600]
    assert json.loads(files.state.read_text())["phase"] == "ready"
