"""Maven → jars → one Apache Kafka broker (KRaft, broker and controller in one process) on 127.0.0.1."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from deploy.local.process import HOST, ManagedProcess, StartFailed, answers
from runtime.kafka.admin import metadata_problem

_FILES = Path(__file__).parent / "kafka"
_POM = _FILES / "pom.xml"
_HEAP_MAX = "768m"
_START_SECONDS_MAX = 60.0
_MAVEN_SECONDS_MAX = 600.0


def jars_root() -> Path:
    """Where jars are kept: apart from the data of any one stack, so that stacks and tests share them."""
    return Path(os.environ.get("USAGE_LOCAL_DIR", ".local")).absolute() / "jars"


def resolve_jars(root: Path | None = None) -> Path:
    """The directory with the broker's jars, filled by Maven the first time.

    Several processes may call this at once: one resolves, the others wait for it. A directory is named by the hash
    of pom.xml and appears whole or not at all. Raises StartFailed with Maven's output.
    """
    root = jars_root() if root is None else root
    target = root / f"kafka-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        maven = shutil.which("mvn")
        if maven is None:
            raise StartFailed("Maven (mvn) is not installed; it fetches the jars of the local Kafka broker")
        with tempfile.TemporaryDirectory(dir=root, prefix="resolving-") as work:
            # A copy, because Maven wants to write a target directory beside the pom.
            shutil.copy(_POM, work)
            command = [maven, "-B", "-q", "-f", f"{work}/pom.xml", "dependency:copy-dependencies"]
            command += ["-DincludeScope=runtime", f"-DoutputDirectory={work}/jars"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_MAVEN_SECONDS_MAX, check=False)
            except subprocess.TimeoutExpired as error:
                raise StartFailed(f"Maven did not end within {_MAVEN_SECONDS_MAX:g} s: {' '.join(command)}") from error
            if done.returncode != 0:
                raise StartFailed(f"Maven could not fetch Kafka's jars:\n{(done.stdout + done.stderr)[-4000:]}")
            Path(work, "jars").rename(target)
    return target


def server_properties(data_dir: Path, port: int, controller_port: int, proxied: tuple[int, int] | None = None) -> str:
    """Configuration of a single node: internal topics with one replica, no topic made by accident.

    proxied: a second port that it listens on, and the port that it advertises to clients which come through it.
    """
    theirs, told = ("", "") if proxied is None else (f"PROXIED://{HOST}:{each}," for each in proxied)
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "listeners": f"PLAINTEXT://{HOST}:{port},{theirs}CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port},{told}CONTROLLER://{HOST}:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": f"{HOST}:{controller_port}",
        "log.dirs": data_dir,
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # After kill -9 a new registration is refused until the old session is over: 9 s by default.
        "broker.session.timeout.ms": 2_000,
        "broker.heartbeat.interval.ms": 300,
        # A broker that hands over before it ends lists no brokers in its answers until then. It is the only one here,
        # and librdkafka from 2.11 on forgets all brokers at such an answer (its issue 5301).
        "controlled.shutdown.enable": "false",
        "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,  # The default, 128 MiB, is a sixth of the heap.
        "log.retention.check.interval.ms": 60_000,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _shared_classes(jars: Path, *, make: bool) -> list[str]:
    """Options that have Java map the broker's classes from a file instead of reading them from jars.

    Measured on two busy cores: 2.0 s of processor time to a broker that answers instead of 5.5. make: without the file,
    it is made when the broker ends in order. Java passes over a file that does not fit, in silence.
    """
    archive = jars / "classes.jsa"
    quiet = ["-Xlog:disable", "-Xlog:all=error:stderr"]
    if archive.exists():
        return [f"-XX:SharedArchiveFile={archive}", *quiet]
    return [f"-XX:ArchiveClassesAtExit={archive}", *quiet] if make else []


class KafkaBroker(ManagedProcess):
    """A broker whose data outlives it: start, stop, kill, start again.

    data_dir: logs and server.properties. log_path: the broker's own log. proxied: see server_properties. start() makes
    everything that is missing.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        controller_port: int,
        log_path: Path,
        jars_dir: Path | None = None,
        proxied: tuple[int, int] | None = None,
    ) -> None:
        super().__init__("kafka", log_path)
        self.data_dir = data_dir.absolute()
        self.port = port
        self.controller_port = controller_port
        self._jars_root = jars_dir
        self._proxied = proxied
        self.bootstrap_servers = f"{HOST}:{port}"

    def prepare(self) -> list[str]:
        """Fetch jars, write the configuration, format the storage once; returns the command that runs the broker."""
        java = shutil.which("java")
        if java is None:
            raise StartFailed("Java (java) is not installed; the local Kafka broker runs on it")
        jars = resolve_jars(self._jars_root)
        class_path = f"{jars}/*"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        logs = self.data_dir / "logs"
        properties = self.data_dir / "server.properties"
        if not logs.exists():
            self._format(java, jars, logs)
        properties.write_text(server_properties(logs, self.port, self.controller_port, self._proxied))
        return [
            java,
            f"-Xmx{_HEAP_MAX}",
            f"-Xms{_HEAP_MAX}",
            # The quick compiler only: on two cores the other one takes a core for the first half minute, which halves
            # what the stack does meanwhile, and a local broker's own work is not a bottleneck.
            "-XX:TieredStopAtLevel=1",
            *_shared_classes(jars, make=True),
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={_FILES / 'log4j2.xml'}",
            "-cp",
            class_path,
            "kafka.Kafka",
            str(properties),
        ]

    def _format(self, java: str, jars: Path, logs: Path) -> None:
        # Formatted aside and renamed: a crash in the middle leaves nothing that a later start would take for storage.
        with tempfile.TemporaryDirectory(dir=self.data_dir, prefix="format-") as work:
            properties = Path(work, "server.properties")
            properties.write_text(server_properties(Path(work, "logs"), self.port, self.controller_port))
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            tool = [java, "-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseG1GC", *_shared_classes(jars, make=False)]
            tool += [
                "-cp",
                f"{jars}/*",
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster_id}",
                "--standalone",
            ]
            done = subprocess.run([*tool, "-c", properties], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 0:
                raise StartFailed(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-4000:]}")
            Path(work, "logs").rename(logs)

    def ready(self) -> bool:
        """Whether the broker answers a metadata request."""
        if not answers(self.port):
            return False
        return metadata_problem({"bootstrap.servers": self.bootstrap_servers, "log_level": 0}, 2.0) is None

    def start(self, timeout_seconds: float = _START_SECONDS_MAX) -> None:
        """Start and return when it answers; raises StartFailed with the tail of the log."""
        command = self.prepare()
        if answers(self.port):
            raise StartFailed(f"port {self.port} is taken: another process answers there")
        self.spawn(command)
        self.wait_until(self.ready, timeout_seconds)
