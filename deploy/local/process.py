"""A command → a child process that can be started, waited for, stopped, frozen and killed."""

import fcntl
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

HOST = "127.0.0.1"
_PORTS = range(16_000, 32_000)
_FIRST = random.randrange(len(_PORTS))
_untried_ports = itertools.chain(_PORTS[_FIRST:], _PORTS[:_FIRST])
_POLL_SECONDS = 0.02


class StartFailed(RuntimeError):
    """A process ended or stayed silent while it was waited for; the message carries the tail of its log."""


def free_ports(count: int) -> list[int]:
    """
    Ports of the loopback address that nothing is bound to, all different; no other process gets them here while this
    one lives. They lie below the range from which the system takes the ports of outgoing connections: a port from
    that range may be taken between this call and the moment when a server binds it, or while its server restarts.
    """
    ports: list[int] = []
    for port in _untried_ports:
        if _is_free(port) and _is_reserved(port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise StartFailed(f"no free ports are left of {_PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
    return True


def _is_reserved(port: int) -> bool:
    """Whether this process now has the port's byte of one file locked; the lock ends with the process."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _reservations() -> int:
    """The descriptor of the file of locks. Never closed: to close one descriptor of a file ends all locks on it."""
    return os.open(Path(tempfile.gettempdir()) / f"usage-ports.{os.getuid()}.lock", os.O_RDWR | os.O_CREAT, 0o600)


def answers(port: int, host: str = HOST) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def tail(path: Path, lines: int = 30, bytes_max: int = 16_384) -> str:
    """The last lines of a log, empty without a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - bytes_max))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def tethered(command: Sequence[str]) -> list[str]:
    """The command, so that it gets SIGTERM when the process that starts it dies, however it dies.

    Linux only (setpriv of util-linux; elsewhere the command is returned as it is). The kernel watches the starting
    *thread*, so a command started from any thread but the main one is left alone.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [setpriv, "--pdeathsig", "TERM", "--", *command]


def identity(pid: int) -> str | None:
    """What tells this process from a later one with the same pid (boot and start time); None if there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the command in brackets and may hold anything, so count from its end.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] == "Z":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19]}"
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


class ManagedProcess:
    """One child process with its log file. Not thread-safe; start and stop may alternate any number of times."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None
        self._asked: subprocess.Popen[bytes] | None = None  # the process that received the signal to end

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """Of the last run, negative for a signal; None while it runs or before it ever did."""
        return self._popen.poll() if self._popen is not None else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    def spawn(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start the command with its output appended to the log; returns at once."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already (pid {self.pid})")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C on the terminal must reach us alone: we stop children in order.
            )

    def wait_until(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Wait for the condition; raises StartFailed (and kills the process) if it ends or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if not self.running:
                code = self._popen.returncode if self._popen is not None else None
                raise StartFailed(
                    f"{self.name} ended with code {code} while starting; {self.log_path}:\n{tail(self.log_path)}"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise StartFailed(
                    f"{self.name} was not ready after {timeout_seconds:g} s; {self.log_path}:\n{tail(self.log_path)}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, timeout_seconds: float = 15.0) -> int | None:
        """SIGTERM, then SIGKILL when it has not ended in time. Returns the exit code, None if it never ran."""
        if self._popen is None:
            return None
        if self._popen.poll() is None:
            self.terminate()
            try:
                self._popen.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._popen.returncode

    def terminate(self) -> None:
        """SIGTERM, without waiting; also to a frozen process, which would not see it before it continues.

        Once for each process: a second one would come in the middle of an end in order.
        """
        if self._popen is not None and self._popen.poll() is None:
            if self._asked is not self._popen:
                self._asked = self._popen
                self._popen.terminate()
            self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the process and what it started, and wait until it is gone."""
        if self._popen is not None and self._popen.poll() is None:
            # Its group is its own (start_new_session), and not reused before we have waited for its leader.
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def pause(self) -> None:
        """SIGSTOP: the process keeps its connections and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            raise RuntimeError(f"{self.name} does not run")
        os.kill(self.pid, number)
