"""plan.json → running processes: started in order, started again when they die, ended in reverse order.

Runs in the background as `python -m deploy.local.supervisor DIRECTORY`; its starter follows state.json. It
holds a lock on its directory for as long as it lives, so a pid in state.json means something exactly while the lock
is held. Its children get SIGTERM from the kernel if it is killed itself (Linux).
"""

import fcntl
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from deploy.local.process import ManagedProcess, StartFailed, answers, identity, tail
from runtime.kafka.admin import metadata_problem

_POLL_SECONDS = 0.05
_RESTART_DELAY_SECONDS = 0.1  # doubled at each quick end, up to the greatest: back within 2 s in any case
_RESTART_DELAY_SECONDS_MAX = 1.0
_QUICK_END_SECONDS = 10.0
_ENDS_WHILE_STARTING_MAX = 3
_LOG_CHECK_SECONDS = 5.0
_LOG_BYTES_MAX = 20 * 1024 * 1024

Probe = Callable[[], str | None]
"""None: ready. A text: why not."""


@dataclass(frozen=True)
class Part:
    """A process that is to run for as long as the stack does.

    env: in addition to the supervisor's own. address: where others reach it. probe: as `probe` takes it.
    stop_seconds: time between SIGTERM and SIGKILL.
    """

    name: str
    command: list[str]
    env: dict[str, str]
    address: str
    probe: str
    stop_seconds: float = 20.0


@dataclass(frozen=True)
class Step:
    """A command that must have ended well before the next stage starts."""

    name: str
    command: list[str]
    env: dict[str, str]
    timeout_seconds: float = 60.0


@dataclass(frozen=True)
class Stage:
    """Parts that start and stop together; when all are ready, the steps run, all at once."""

    parts: list[Part]
    steps: list[Step] = field(default_factory=list[Step])
    ready_seconds_max: float = 60.0


@dataclass(frozen=True)
class Plan:
    """The whole stack, in order of start."""

    stages: list[Stage]
    cwd: str
    log_dir: str


@dataclass
class PartState:
    """pid and identity are None while it does not run."""

    name: str
    address: str
    log: str
    pid: int | None = None
    identity: str | None = None
    starts: int = 0


@dataclass
class State:
    """What the supervisor tells, replaced as a whole at each change. pid and identity are its own."""

    pid: int
    identity: str | None
    phase: Literal["starting", "ready", "stopping", "stopped", "failed"]
    reason: str
    parts: list[PartState]


class Files:
    """The names in a supervisor's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / "lock"
        self.plan = directory / "plan.json"
        self.state = directory / "state.json"

    def supervised(self) -> bool:
        """Whether a supervisor lives that holds this directory."""
        if not self.lock.exists():
            return False
        with self.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def read_state(self) -> State | None:
        """The last state written, by a supervisor that may be gone; None if there never was one."""
        try:
            return msgspec.json.decode(self.state.read_bytes(), type=State)
        except FileNotFoundError:
            return None

    def read_plan(self) -> Plan:
        """Raises FileNotFoundError when there never was one."""
        return msgspec.json.decode(self.plan.read_bytes(), type=Plan)

    def write(self, path: Path, value: object) -> None:
        """Whole or not at all, and for the owner's eyes only: a plan holds keys."""
        aside = path.with_suffix(".new")
        aside.touch(mode=0o600)
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
        aside.replace(path)


def probe(address: str) -> str | None:
    """Ask the address once, for a second or two at most: None if it is ready, else why not.

    kafka://host:port answers a metadata request, tcp://host:port accepts a connection, http://… answers 200.
    """
    if address.startswith("kafka://"):
        servers = address.removeprefix("kafka://")
        return metadata_problem({"bootstrap.servers": servers, "log_level": 0}, 1.5)
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        return None if answers(int(port), host) else "does not accept connections"
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return None if answer.status == 200 else f"answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code}: {error.read(2000).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


class _Child:
    """A part and its process over all its restarts."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part = part
        self.process = ManagedProcess(part.name, log)
        self.state = PartState(part.name, part.address, str(log))
        self.quick_ends = 0
        self.start_at = 0.0  # monotonic; when it does not run, the earliest time of the next start
        self._started_at = 0.0

    def start(self, cwd: Path) -> None:
        self.process.spawn(self.part.command, {**os.environ, **self.part.env}, cwd)
        self._started_at = time.monotonic()
        self.state.pid = self.process.pid
        self.state.identity = identity(self.state.pid) if self.state.pid is not None else None
        self.state.starts += 1

    def has_ended(self) -> bool:
        """True once for each end of the process."""
        if self.state.pid is None or self.process.running:
            return False
        self.state.pid = self.state.identity = None
        now = time.monotonic()
        self.quick_ends = self.quick_ends + 1 if now - self._started_at < _QUICK_END_SECONDS else 0
        delay = min(_RESTART_DELAY_SECONDS * 2**self.quick_ends, _RESTART_DELAY_SECONDS_MAX)
        self.start_at = now + delay
        return True


class Supervisor:
    """Runs one plan to its end."""

    def __init__(self, files: Files, plan: Plan) -> None:
        self._files = files
        self._plan = plan
        self._cwd = Path(plan.cwd)
        self._logs = Path(plan.log_dir)
        self._stages = [
            [_Child(part, self._logs / f"{part.name}.log") for part in stage.parts] for stage in plan.stages
        ]
        self._children = [child for stage in self._stages for child in stage]
        self._state = State(
            os.getpid(), identity(os.getpid()), "starting", "", [child.state for child in self._children]
        )
        self._stopping = False
        self._logs_checked_at = 0.0

    def request_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until the start has failed. Returns the exit code."""
        self._write()
        reason = ""
        try:
            self._start()
            while not self._stopping:
                self._tend()
                time.sleep(_POLL_SECONDS)
        except StartFailed as error:
            reason = str(error)
            _say(reason)
        self._stop()
        self._state.phase, self._state.reason = ("failed", reason) if reason else ("stopped", "")
        self._write()
        return 1 if reason else 0

    def _start(self) -> None:
        for stage, children in zip(self._plan.stages, self._stages, strict=True):
            for child in children:
                self._start_child(child)
            self._wait_ready(stage, children)
            if self._stopping:
                return
            self._run_steps(stage.steps)
        if not self._stopping:
            self._state.phase = "ready"
            self._write()
            _say("ready")

    def _start_child(self, child: _Child) -> None:
        child.start(self._cwd)
        _say(f"{child.part.name}: pid {child.state.pid}")
        self._write()

    def _wait_ready(self, stage: Stage, children: list[_Child]) -> None:
        deadline = time.monotonic() + stage.ready_seconds_max
        waiting = list(children)
        while waiting and not self._stopping:
            for child in self._tend():
                if child.quick_ends >= _ENDS_WHILE_STARTING_MAX:
                    code = child.process.exit_code
                    log_path = child.process.log_path
                    raise StartFailed(
                        f"{child.part.name} ended {child.quick_ends} times while starting, last with code {code}; "
                        f"{log_path}:\n{tail(log_path)}"
                    )
            reasons = {child.part.name: probe(child.part.probe) for child in waiting}
            waiting = [child for child in waiting if reasons[child.part.name] is not None]
            if waiting and time.monotonic() > deadline:
                late = waiting[0]
                raise StartFailed(
                    f"{late.part.name} was not ready after {stage.ready_seconds_max:g} s "
                    f"({reasons[late.part.name]}); {late.process.log_path}:\n{tail(late.process.log_path)}"
                )
            time.sleep(_POLL_SECONDS)

    def _run_steps(self, steps: list[Step]) -> None:
        running = [(step, ManagedProcess(step.name, self._logs / f"{step.name}.log")) for step in steps]
        started = time.monotonic()
        try:
            for step, process in running:
                _say(f"{step.name}: {' '.join(step.command)}")
                process.spawn(step.command, {**os.environ, **step.env}, self._cwd)
            for step, process in running:
                self._wait_for_end(step, process, started + step.timeout_seconds)
        finally:
            for _, process in running:
                process.kill()

    def _wait_for_end(self, step: Step, process: ManagedProcess, deadline: float) -> None:
        while process.running:
            if self._stopping:
                return
            if time.monotonic() > deadline:
                what = f"did not end within {step.timeout_seconds:g} s"
                raise StartFailed(f"{step.name} {what}; {process.log_path}:\n{tail(process.log_path)}")
            self._tend()
            time.sleep(_POLL_SECONDS)
        if process.exit_code != 0:
            what = f"ended with code {process.exit_code}"
            raise StartFailed(f"{step.name} {what}; {process.log_path}:\n{tail(process.log_path)}")

    def _tend(self) -> list[_Child]:
        """Note what has ended, start again what is due, keep logs short. Returns the children that have just ended."""
        ended = [child for child in self._children if child.has_ended()]
        for child in ended:
            _say(f"{child.part.name} ended with code {child.process.exit_code}")
            self._write()
        for child in self._children:
            if child.state.starts and child.state.pid is None and time.monotonic() >= child.start_at:
                self._start_child(child)
        if time.monotonic() - self._logs_checked_at > _LOG_CHECK_SECONDS:
            self._logs_checked_at = time.monotonic()
            for path in self._logs.glob("*.log"):
                keep_short(path)
        return ended

    def _stop(self) -> None:
        self._state.phase = "stopping"
        self._write()
        for children in reversed(self._stages):
            running = [child for child in children if child.process.running]
            for child in running:
                child.process.terminate()
            deadline = time.monotonic()
            for child in running:
                left = max(0.0, deadline + child.part.stop_seconds - time.monotonic())
                code = child.process.stop(left)
                _say(f"{child.part.name} stopped with code {code}")
                child.state.pid = child.state.identity = None
                self._write()

    def _write(self) -> None:
        self._files.write(self._files.state, self._state)


def keep_short(path: Path, bytes_max: int = _LOG_BYTES_MAX) -> bool:
    """Move the newest half of a log that is too long to NAME.log.1, the rest away; whether it was too long.

    Its writer appends, and so continues at its new beginning.
    """
    if path.stat().st_size <= bytes_max:
        return False
    with path.open("r+b") as file, path.with_suffix(".log.1").open("wb") as old:
        file.seek(-bytes_max // 2, os.SEEK_END)
        file.readline()
        while block := file.read(1 << 20):
            old.write(block)
        file.truncate(0)
    return True


def _say(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {message}", flush=True)


def main() -> int:
    files = Files(Path(sys.argv[1]))
    with files.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{files.directory} has a supervisor already", file=sys.stderr)
            return 1
        supervisor = Supervisor(files, files.read_plan())
        signal.signal(signal.SIGTERM, supervisor.request_stop)
        signal.signal(signal.SIGINT, supervisor.request_stop)
        return supervisor.run()


if __name__ == "__main__":
    raise SystemExit(main())
