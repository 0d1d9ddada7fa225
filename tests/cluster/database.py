"""What accounting needs besides slurmdbd itself: a MariaDB of the cluster's own, and slurmdbd.conf."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.cluster.instances import Instance

# It listens on the login node's address, which is the cluster's own, so no other database is in the way.
PORT = 3306

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr={login}
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost={login}
StoragePort={storage_port}
StorageUser=root
StorageLoc=slurm
"""


def write_slurmdbd_conf(instance: Instance, port: int) -> None:
    text = SLURMDBD_CONF.format(
        folder=instance.folder,
        host=socket.gethostname(),
        login=instance.login_address,
        port=port,
        storage_port=PORT,
    )
    path = Path(instance.folder, "slurmdbd.conf")
    path.touch(mode=0o600)
    path.write_text(text)


def mariadb_command(instance: Instance) -> list[str]:
    """Fill the database's folder, and say how to run it: small, without durability and without passwords."""
    folder = Path(instance.folder, "mariadb")
    folder.mkdir(mode=0o700)
    settings = [
        "mariadbd",
        "--no-defaults",
        f"--datadir={folder}",
        "--user=root",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--innodb-log-file-size=8M",
        "--innodb-buffer-pool-size=32M",
        "--innodb-lock-wait-timeout=900",
        "--skip-log-bin",
    ]
    tables = Path("/usr/share/mysql/mysql_system_tables.sql").read_text()
    script = f"create database mysql;\nuse mysql;\n{tables}"
    done = subprocess.run(
        [*settings, "--bootstrap"], input=script, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"MariaDB's tables cannot be made: {done.stderr[-2000:]}")
    listen = [f"--bind-address={instance.login_address}", f"--port={PORT}", f"--socket={folder}/socket"]
    return [*settings, *listen, "--skip-grant-tables", "--skip-name-resolve"]
