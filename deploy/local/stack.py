"""Settings → the whole stack on this machine: Kafka, ClickHouse, Stripe's stand-in and the services, up and down.

Every part whose address the environment gives is taken from there instead of being started.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.local import docker
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import HOST, StartFailed, answers, identity, tail
from deploy.local.supervisor import Files, Part, PartState, Plan, Stage, State, Step, probe
from runtime.private_files import make_private
from schemas.settings import Settings

Say = Callable[[str], None]
Way = Literal["given", "maven", "docker", "apt"]

_ADMIN_KEY_FILE = "admin-key"
_ADMIN_KEY_PREFIX = "ubk_"
_SERVICE_STOP_SECONDS = 25.0
_UP_SECONDS_MAX = 240.0
_RESTART_SECONDS_MAX = 60.0
_ORPHAN_SECONDS_MAX = 15.0
_APT_PACKAGES = ("default-jre-headless", "maven")
_APT_SECONDS_MAX = 600.0


class StackFailed(RuntimeError):
    """The stack could not be started or ended; the message says why, with the tail of the log that tells more."""


@dataclass(frozen=True)
class Started:
    """What `up` has to tell.

    addresses: by part. clickhouse_dsn: with the password, which the first `up` makes. admin_key: the key made by this
    `up`, None if there was one before (it is shown only once). admin_key_file: where the key of this stack is kept,
    None where USAGE_ADMIN_KEY gives one. already: it ran before.
    """

    addresses: Mapping[str, str]
    clickhouse_dsn: str
    admin_key: str | None
    admin_key_file: Path | None
    already: bool


@dataclass(frozen=True)
class PartStatus:
    """One process of the local stack.

    state: ready | unready | restarting | stopped | given (another's, and it answers) | absent (another's, silent).
    lag: messages that its consumer group has yet to read, None if it has none or does not tell.
    """

    name: str
    pid: int | None
    address: str
    state: str
    lag: int | None
    starts: int
    log: str | None


def choose_kafka(given: bool, have: Callable[[str], bool], is_root: bool) -> Way | None:
    """Where Kafka comes from; None when nothing here can provide it. have: whether a command is on the path."""
    if given:
        return "given"
    if have("java") and have("mvn"):
        return "maven"
    if have("docker"):
        return "docker"
    if is_root and have("apt-get"):
        return "apt"
    return None


def up(settings: Settings, say: Say = print) -> Started:
    """Start what does not run yet and return when every part is ready. Repeating it changes nothing.

    say: gets a line for each thing that takes time. Raises StackFailed.
    """
    base = settings.local_dir.absolute()
    files = Files(base / "run")
    make_private(base)
    files.directory.mkdir(parents=True, exist_ok=True)
    (base / "logs").mkdir(exist_ok=True)
    with _one_at_a_time(files):
        while files.supervised() and _phase(files) == "stopping":
            time.sleep(0.05)
        if files.supervised():
            state = _wait_ready(files, None)
            return _started(settings, base, state, None, already=True)
        _end_orphans(files, say)
        admin_key, is_new = _admin_key(settings, base)
        try:
            plan = _plan(settings, base, admin_key, say)
        except StartFailed as error:
            raise StackFailed(str(error)) from error
        _check_ports(plan)
        files.state.unlink(missing_ok=True)
        files.write(files.plan, plan)
        supervisor = _start_supervisor(files, base / "logs" / "supervisor.log")
        state = _wait_ready(files, supervisor)
    return _started(settings, base, state, admin_key if is_new else None, already=False)


def _started(settings: Settings, base: Path, state: State, new_key: str | None, *, already: bool) -> Started:
    key_file = None if settings.admin_key is not None else settings.local_dir / _ADMIN_KEY_FILE
    return Started(_addresses(state, settings), _clickhouse_dsn(settings, base), new_key, key_file, already)


def down(settings: Settings, say: Say = print) -> bool:
    """End everything that `up` started, in reverse order; whether anything ran. Raises StackFailed."""
    files = Files(settings.local_dir.absolute() / "run")
    if not files.directory.is_dir():
        return False
    state = files.read_state()
    if not files.supervised():
        return _end_orphans(files, say)
    if state is None or identity(state.pid) != state.identity:
        raise StackFailed(f"{files.lock} is held by a process that {files.state} does not tell of; try again")
    say("ending the services, then the stack")
    os.kill(state.pid, signal.SIGTERM)
    seconds_max = _stop_seconds(files) + 10
    deadline = time.monotonic() + seconds_max
    while files.supervised():
        if time.monotonic() > deadline:
            say(f"the supervisor (pid {state.pid}) has not ended after {seconds_max:g} s: it is killed")
            os.kill(state.pid, signal.SIGKILL)
            while files.supervised():
                time.sleep(0.05)
            break
        time.sleep(0.05)
    _end_orphans(files, say)
    return True


def restart(settings: Settings, name: str) -> bool:
    """End a part, and wait until the supervisor has it ready again; whether it ran. Raises StackFailed."""
    files = Files(settings.local_dir.absolute() / "run")
    state = files.read_state()
    if state is None or not files.supervised():
        return False
    before = next((part for part in state.parts if part.name == name), None)
    if before is None or before.pid is None or identity(before.pid) != before.identity:
        return False
    os.kill(before.pid, signal.SIGTERM)
    deadline = time.monotonic() + _RESTART_SECONDS_MAX
    while time.monotonic() < deadline:
        part = next((part for part in status(settings) if part.name == name), None)
        if part is not None and part.state == "ready" and part.pid != before.pid:
            return True
        time.sleep(0.05)
    raise StackFailed(f"{name} was not ready {_RESTART_SECONDS_MAX:g} s after its end; see {before.log}")


def status(settings: Settings) -> list[PartStatus]:
    """Every part in order of start, asked now; what is not running is listed too once there was an `up`."""
    files = Files(settings.local_dir.absolute() / "run")
    state = files.read_state()
    rows = [
        PartStatus(name, None, address, "given" if probe(probed) is None else "absent", None, 0, None)
        for name, address, probed in _given(settings)
    ]
    if state is None:
        return rows
    supervised = files.supervised()
    probes = {part.name: part.probe for part in _read_plan(files)}
    return rows + [_part_status(part, probes[part.name], supervised) for part in state.parts]


def _part_status(part: PartState, probed: str, supervised: bool) -> PartStatus:
    pid = part.pid if supervised else None
    if not supervised:
        state = "stopped"
    elif pid is None:
        state = "restarting"
    else:
        state = "ready" if probe(probed) is None else "unready"
    lag = _lag(probed) if state in ("ready", "unready") and probed.endswith("/readyz") else None
    return PartStatus(part.name, pid, part.address, state, lag, part.starts, part.log)


def _lag(readyz: str) -> int | None:
    """Sum of the service's own gauges of messages not read yet (`…_lag`), None if it has none."""
    try:
        with urllib.request.urlopen(readyz.removesuffix("/readyz") + "/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    values = [line.rpartition(" ")[2] for line in lines if line.partition("{")[0].partition(" ")[0].endswith("_lag")]
    return int(sum(float(value) for value in values)) if values else None


@contextlib.contextmanager
def _one_at_a_time(files: Files) -> Generator[None]:
    """A second `up` waits for the first."""
    with (files.directory / "up.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _given(settings: Settings) -> list[tuple[str, str, str]]:
    """(name, address, probe) of the parts whose address the environment or .env gives."""
    found: list[tuple[str, str, str]] = []
    if _is_given(settings, "kafka_bootstrap_servers"):
        servers = settings.kafka_bootstrap_servers
        found.append(("kafka", servers, f"kafka://{servers}"))
    if _is_given(settings, "clickhouse_dsn") or settings.clickhouse_shards:
        address = _without_secret(settings.clickhouse_dsn)
        found.append(("clickhouse", address, f"tcp://{_host_port(settings.clickhouse_dsn)}"))
    if _is_given(settings, "stripe_api_base"):
        found.append(("stripe", settings.stripe_api_base, f"tcp://{_host_port(settings.stripe_api_base)}"))
    return found


def _is_given(settings: Settings, name: str) -> bool:
    return name in settings.model_fields_set


def _host_port(address: str) -> str:
    parts = urllib.parse.urlparse(address)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _without_secret(address: str) -> str:
    parts = urllib.parse.urlparse(address)
    return f"{parts.scheme}://{_host_port(address)}{parts.path}"


def _plan(settings: Settings, base: Path, admin_key: str, say: Say) -> Plan:
    given = {name for name, _, _ in _given(settings)}
    for name, address, _ in _given(settings):
        say(f"{name}: {address}, from the environment")
    infrastructure: list[Part] = []
    env = {"PYTHONUNBUFFERED": "1"}
    if "kafka" not in given:
        infrastructure.append(_kafka(settings, base, say))
        env["USAGE_KAFKA_BOOTSTRAP_SERVERS"] = f"{HOST}:{settings.local_kafka_port}"
    if "clickhouse" not in given:
        native = _native_port(settings, say)
        say(f"clickhouse: its own server, out of chDB's library{f'; native on {HOST}:{native}' if native else ''}")
        engine = _clickhouse(settings, base, native)
        infrastructure.append(Part("clickhouse", engine.command(), {}, engine.url, f"{engine.url}/ping"))
        env["USAGE_CLICKHOUSE_DSN"] = engine.dsn("usage")
    if "stripe" not in given:
        say("stripe: the local stand-in")
        infrastructure.append(_stripe(settings, base))
        env["STRIPE_API_BASE"] = f"http://{HOST}:{settings.local_stripe_port}"
        for name in ("stripe_api_key", "stripe_webhook_secret"):
            if not _is_given(settings, name):
                env[name.upper()] = getattr(settings, name).get_secret_value()
    steps = [Step("topics", _command("topics", "create"), env), Step("migrate", _command("migrate"), env)]
    # Only `serve` gets the admin key.
    serve_env = env if _is_given(settings, "admin_key") else {**env, "USAGE_ADMIN_KEY": admin_key}
    services = [
        _service("aggregator", settings.aggregator_metrics_port, env, settings.metrics_host),
        _service("sink", settings.sink_metrics_port, env, settings.metrics_host),
        _service("billing", settings.billing_metrics_port, env, settings.metrics_host),
        _service("serve", settings.http_port, serve_env, settings.http_host),
    ]
    return Plan([Stage(infrastructure, steps), Stage(services)], str(Path.cwd()), str(base / "logs"))


def _reachable(host: str) -> str:
    return HOST if host in ("0.0.0.0", "::", "") else host


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "usage_billing.cli", *arguments]


def _service(name: str, port: int, env: dict[str, str], host: str) -> Part:
    address = f"http://{_reachable(host)}:{port}"
    return Part(name, _command(name), env, address, f"{address}/readyz", _SERVICE_STOP_SECONDS)


def _kafka(settings: Settings, base: Path, say: Say) -> Part:
    port, controller_port = settings.local_kafka_port, settings.local_kafka_controller_port
    address = f"{HOST}:{port}"
    way = choose_kafka(False, lambda command: shutil.which(command) is not None, os.geteuid() == 0)
    if way is None:
        raise StartFailed(
            "Kafka needs Java 17 or newer and Maven, or Docker, and none is installed. Install one of them "
            f"(Debian, Ubuntu: apt-get install {' '.join(_APT_PACKAGES)}), or name a broker of yours by "
            "USAGE_KAFKA_BOOTSTRAP_SERVERS."
        )
    if way == "docker":
        say(f"kafka: {docker.KAFKA_IMAGE} by Docker")
        command = docker.kafka_command(base / "kafka-docker", port)
    else:
        if way == "apt":
            say(f"kafka: neither Java nor Docker is here, so {' and '.join(_APT_PACKAGES)} are installed by apt-get")
            _apt_install(_APT_PACKAGES)
        say("kafka: Apache Kafka on Java, by Maven (the first time it fetches 60 MB)")
        command = KafkaBroker(base / "kafka", port, controller_port, base / "logs" / "kafka.log").prepare()
    return Part("kafka", command, {}, address, f"kafka://{address}")


def _apt_install(packages: Sequence[str]) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed(f"apt-get {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def _clickhouse(settings: Settings, base: Path, native_port: int | None) -> ClickHouseLocal:
    log = base / "logs" / "clickhouse.log"
    return ClickHouseLocal(base / "clickhouse", settings.local_clickhouse_port, log, native_port)


def _clickhouse_dsn(settings: Settings, base: Path) -> str:
    if _is_given(settings, "clickhouse_dsn") or settings.clickhouse_shards:
        return settings.clickhouse_dsn
    return _clickhouse(settings, base, None).dsn("usage")


def _native_port(settings: Settings, say: Say) -> int | None:
    """None: another process has it, and it was not asked for by name: the services do without."""
    port, name = settings.local_clickhouse_native_port, "local_clickhouse_native_port"
    if not answers(port):
        return port
    where = f"{HOST}:{port}, where another process answers"
    if _is_given(settings, name):
        raise StartFailed(f"clickhouse is to listen on {where}: end that one, or change USAGE_{name.upper()}")
    say(f"clickhouse: no native protocol, which would be on {where} (USAGE_{name.upper()})")
    return None


def _stripe(settings: Settings, base: Path) -> Part:
    """The stand-in; it posts every event to `serve`, signed as the settings say."""
    address = f"http://{HOST}:{settings.local_stripe_port}"
    webhooks = f"http://{_reachable(settings.http_host)}:{settings.http_port}/webhooks/stripe"
    command = [sys.executable, "-m", "stripe_standin", "--port", str(settings.local_stripe_port)]
    command += ["--path", str(base / "stripe"), "--webhook-url", webhooks]
    command += ["--webhook-secret", settings.stripe_webhook_secret.get_secret_value().partition(",")[0]]
    return Part("stripe", command, {}, address, f"{address}/healthz")


def _admin_key(settings: Settings, base: Path) -> tuple[str, bool]:
    """The admin key, and whether it was made just now."""
    if settings.admin_key is not None:
        return settings.admin_key.get_secret_value(), False
    path = base / _ADMIN_KEY_FILE
    if path.exists():
        return path.read_text().strip(), False
    key = _ADMIN_KEY_PREFIX + secrets.token_urlsafe(32)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(key + "\n")
    return key, True


def read_admin_key(settings: Settings) -> str | None:
    """The admin key that the first `up` made, None where this user finds none."""
    try:
        return (settings.local_dir / _ADMIN_KEY_FILE).read_text().strip() or None
    except OSError:
        return None


def _check_ports(plan: Plan) -> None:
    for stage in plan.stages:
        for part in stage.parts:
            host, _, port = part.address.removeprefix("http://").rpartition(":")
            if answers(int(port), host):
                raise StackFailed(
                    f"{part.name} is to listen on {part.address}, where another process answers. End that one, or move "
                    "this part by its port setting (usage-billing settings lists them)."
                )


def _start_supervisor(files: Files, log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.local.supervisor", str(files.directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # It outlives the terminal.
        )


def _wait_ready(files: Files, supervisor: subprocess.Popen[bytes] | None) -> State:
    """Follow the supervisor until it says ready. supervisor: the process, if this `up` started it."""
    deadline = time.monotonic() + _UP_SECONDS_MAX
    while True:
        alive = files.supervised() if supervisor is None else supervisor.poll() is None
        state = files.read_state()
        if state is not None and state.phase == "ready" and alive:
            return state
        if not alive:
            reason = (
                state.reason
                if state is not None and state.reason
                else tail(files.directory.parent / "logs" / "supervisor.log")
            )
            raise StackFailed(reason)
        if time.monotonic() > deadline:
            raise StackFailed(
                f"the stack was not ready after {_UP_SECONDS_MAX:g} s; see {files.directory.parent / 'logs'}"
            )
        time.sleep(0.05)


def _addresses(state: State, settings: Settings) -> dict[str, str]:
    return {name: address for name, address, _ in _given(settings)} | {part.name: part.address for part in state.parts}


def _phase(files: Files) -> str | None:
    state = files.read_state()
    return state.phase if state is not None else None


def _read_plan(files: Files) -> list[Part]:
    return [part for stage in files.read_plan().stages for part in stage.parts]


def _stop_seconds(files: Files) -> float:
    return sum(max((part.stop_seconds for part in stage.parts), default=0.0) for stage in files.read_plan().stages)


def _end_orphans(files: Files, say: Say) -> bool:
    """End processes of a supervisor that was killed itself; whether there were any. Never one that is not ours."""
    state = files.read_state()
    if state is None:
        return False

    def left() -> list[PartState]:
        return [part for part in state.parts if part.pid is not None and identity(part.pid) == part.identity]

    found = left()
    for part in found:
        say(f"{part.name} (pid {part.pid}) was left over and is ended")
    deadline = time.monotonic() + _ORPHAN_SECONDS_MAX
    number = signal.SIGTERM
    while parts := left():
        for part in parts:
            with contextlib.suppress(ProcessLookupError):
                os.kill(part.pid or 0, number)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.2)
    return bool(found)
