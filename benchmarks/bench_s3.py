"""Put and get of a 200 MB checkpoint file: stageline's store (obstore) beside boto3 and s3fs, on a real S3 server.

Run: `python benchmarks/bench_s3.py --server <versitygw>`; without `--server` the one that `make cluster` built is
taken. Server and clients share this machine, so the figures are about clients, not about disks or networks. s3fs is no
dependency of stageline: it takes part where it can be imported, e.g.

    python -m venv /tmp/bench && /tmp/bench/bin/pip install . boto3 "s3fs>=2025"
    /tmp/bench/bin/python benchmarks/bench_s3.py
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import print_table, side_by_side

BYTES = 200_000_000
KEY, SECRET = "AKIABENCHBENCHBENCH0", "bench/secret+key00000000000000000000001"
BUCKET = "bench"
BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stageline/cluster/bin/versitygw"


def start_server(binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server on loopback and its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "data").mkdir()
    environment = {**os.environ, "ROOT_ACCESS_KEY_ID": KEY, "ROOT_SECRET_ACCESS_KEY": SECRET}
    command = [binary, "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive", "posix", str(folder / "data")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    raise SystemExit(f"{binary} does not listen on port {port}")


def contestants(endpoint: str, source: Path, folder: Path) -> tuple[dict[str, Callable[[], object]], ...]:
    """(puts, gets): of each client its plain way to send a file and to fetch it into another one."""
    import boto3

    from stageline.store import open_store

    target = folder / "target.bin"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    store = open_store(f"s3://{BUCKET}/stageline")
    obstore, boto = (f"{name} {importlib.metadata.version(name)}" for name in ("obstore", "boto3"))
    puts: dict[str, Callable[[], object]] = {
        f"stageline ({obstore})": lambda: store.put("file", source),
        boto: lambda: client.upload_file(str(source), BUCKET, "boto3/file"),
    }
    gets: dict[str, Callable[[], object]] = {
        f"stageline ({obstore})": lambda: store.download("file", target),
        boto: lambda: client.download_file(BUCKET, "boto3/file", str(target)),
    }
    try:
        import s3fs
    except ImportError:
        print("s3fs is not installed here and left out; see the head of this file")
        return puts, gets
    files = s3fs.S3FileSystem(endpoint_url=endpoint, key=KEY, secret=SECRET, client_kwargs={"region_name": "us-east-1"})
    name = f"s3fs {importlib.metadata.version('s3fs')}"
    puts[name] = lambda: files.put_file(str(source), f"{BUCKET}/s3fs/file")
    gets[name] = lambda: files.get_file(f"{BUCKET}/s3fs/file", str(target))
    return puts, gets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = str(BUILT) if BUILT.is_file() else shutil.which("versitygw")
    parser.add_argument("--server", default=found, help="path of the S3 server's program, versitygw")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not options.server:
        raise SystemExit(
            "name the S3 server: --server <versitygw> (go install github.com/versity/versitygw/cmd/versitygw)"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.bin"
        source.write_bytes(os.urandom(BYTES))
        process, endpoint = start_server(options.server, folder)
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL_S3": endpoint}
        try:
            for verb, calls in zip(("put", "get"), contestants(endpoint, source, folder), strict=True):
                seconds = side_by_side(calls, options.rounds)
                first = next(iter(seconds))
                note = ", ".join(f"{client}: {BYTES / 1e6 / taken:.0f} MB/s" for client, taken in seconds.items())
                title = f"{verb} of {BYTES / 1e6:.0f} MB, median of {options.rounds}"
                print_table(title, seconds, reference=first, note=note)
            same = (
                hashlib.sha256((folder / "target.bin").read_bytes()).digest()
                == hashlib.sha256(source.read_bytes()).digest()
            )
            assert same, "what was fetched last is not what was sent"
        finally:
            process.kill()
            process.wait(30)


if __name__ == "__main__":
    main()
