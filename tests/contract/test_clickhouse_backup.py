"""ClickHouse's own BACKUP and RESTORE, as docs/how-to/backup.md has them, of every table that the migrations make.

The local stack's server has no right to it (docs/decisions/clickhouse.md), so the same engine runs it in a process.
"""

import re
import subprocess
import sys
from pathlib import Path

from warehouse.migrate import migrations

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "backup.md"
_ENGINE = """
import os, sys
from pathlib import Path
from deploy.local.clickhouse_server import load_engine
engine = load_engine()
print(engine.query(sys.stdin.read(), "TabSeparated").bytes().decode())
sys.stdout.flush()
os._exit(0)
"""


def test_the_statements_of_the_page_bring_every_table_back(tmp_path: Path) -> None:
    backup, restore = re.findall(r"^(?:BACKUP|RESTORE) .*?;$", PAGE.read_text(), re.M | re.S)
    (tmp_path / "config.xml").write_text(
        f"<clickhouse><path>{tmp_path}/data/</path>"
        f"<storage_configuration><disks><backups><type>local</type><path>{tmp_path}/backups/</path></backups></disks>"
        "</storage_configuration><backups><allowed_disk>backups</allowed_disk></backups></clickhouse>"
    )
    counted = "SELECT count(), sum(kafka_offset) FROM usage.ingest_batches; SELECT count() FROM system.tables WHERE database = 'usage'"
    statements = [
        "CREATE DATABASE usage",
        "USE usage",
        *(statement for migration in migrations() for statement in migration.statements),
        "INSERT INTO ingest_batches (kafka_epoch, kafka_partition, kafka_offset, next_offset, events)"
        " SELECT 1, 0, number, number + 1, 0 FROM numbers(1000)",
        counted,
        backup.rstrip(";"),
        "USE default",
        "DROP DATABASE usage SYNC",
        restore.rstrip(";"),
        counted,
    ]
    done = subprocess.run(
        [sys.executable, "-c", _ENGINE],
        input=";\n".join(statements), capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
        env={"PYTHONPATH": str(PAGE.parents[2])},
    )  # fmt: skip
    rows = [line for line in done.stdout.splitlines() if line]
    assert len(rows) == 6, done.stdout + done.stderr
    assert rows[0] == "1000\t499500"
    assert rows[2].endswith("BACKUP_CREATED")
    assert rows[3].endswith("RESTORED")
    assert rows[4:] == rows[:2]
