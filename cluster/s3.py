"""The S3 server: versitygw over a folder, with accounts that tests can make and delete, and an off switch.

Buckets that `up` or a test makes belong to the root account; `grant` opens one to an account. Accounts are read at
every request, so a deleted one is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets

from cluster import process
from cluster.errors import ClusterError
from cluster.network import HEAD
from cluster.process import run, wait_until
from cluster.state import State, current, write_json

REGION = "us-east-1"
PORT = 7070
ENDPOINT = f"http://{HEAD.address}:{PORT}"
BUCKET = "stageline"


def root_account(state: State) -> dict[str, str]:
    """The server's own account: made up once per life of the cluster."""
    file = state.run / "s3.json"
    if not file.exists():
        write_json(file, {"access_key": "stageline-root", "secret_key": secrets.token_hex(20)})
        file.chmod(0o600)
    account: dict[str, str] = json.loads(file.read_text())
    return account


def start_server(state: State | None = None) -> None:
    """Start the server (if it does not run) and wait until it answers."""
    state = state or current()
    data, accounts = state.root / "s3", state.run / "s3-accounts"
    for folder in (data, accounts):
        folder.mkdir(parents=True, exist_ok=True)
    root = root_account(state)
    env = {"ROOT_ACCESS_KEY": root["access_key"], "ROOT_SECRET_KEY": root["secret_key"]}
    argv = [state.bin / "versitygw", "--port", f"{HEAD.address}:{PORT}", "--region", REGION, "--health", "/health"]
    argv += ["--quiet", "--iam-dir", accounts, "--iam-cache-disable", "posix", data]
    process.start(state, "s3", argv, netns=HEAD.netns, env=env)
    wait_until(
        lambda: is_ready(state),
        f"the S3 server at {ENDPOINT} to answer",
        seconds=20,
        advice=lambda: process.log_tail(state, "s3"),
    )


def stop_server(state: State | None = None) -> None:
    """Stop the server at once, as a crash would: requests in flight break."""
    process.stop(state or current(), "s3", grace_seconds=0)


def is_ready(state: State) -> bool:
    """Whether the server lives and answers."""
    if process.find(state, "s3") is None:
        return False
    argv = ["curl", "-sf", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "5"]
    return run(state, [*argv, f"{ENDPOINT}/health"], netns=HEAD.netns, check=False).strip() == "200"


def admin(state: State, *words: str) -> str:
    """The server's admin client, as root."""
    root = root_account(state)
    argv = [state.bin / "versitygw", "admin", "--endpoint-url", ENDPOINT]
    env = {"ADMIN_ACCESS_KEY": root["access_key"], "ADMIN_SECRET_KEY": root["secret_key"], "ADMIN_REGION": REGION}
    return run(state, [*argv, *words], netns=HEAD.netns, env=env, timeout_seconds=30)


def create_account(name: str, *, role: str = "user", state: State | None = None) -> dict[str, str]:
    """Make an account and give back its access_key (the name) and secret_key. It may use what `grant` opens to it.

    role: user, userplus (may make buckets) or admin (may use all of them).
    """
    secret = secrets.token_hex(20)
    admin(state or current(), "create-user", "--access", name, "--secret", secret, "--role", role)
    return {"access_key": name, "secret_key": secret}


def delete_account(name: str, *, state: State | None = None) -> None:
    """Delete an account: its next request is refused."""
    admin(state or current(), "delete-user", "--access", name)


def request(state: State, method: str, path: str, body: str = "", account: dict[str, str] | None = None) -> str:
    """One signed request, made inside the namespace; a refusal raises with the server's answer."""
    who = account or root_account(state)
    argv = ["curl", "-sS", "--fail-with-body", "-X", method, "--noproxy", "*", "--max-time", "20"]
    argv += ["--aws-sigv4", f"aws:amz:{REGION}:s3", "--config", "-", f"{ENDPOINT}/{path}"]
    # The key goes through standard input, so that no process list shows it.
    lines = [f'user = "{who["access_key"]}:{who["secret_key"]}"']
    lines.append(f'header = "x-amz-content-sha256: {hashlib.sha256(body.encode()).hexdigest()}"')
    if body:
        lines.append(f"data = {json.dumps(body)}")
    return run(state, argv, netns=HEAD.netns, text="\n".join(lines) + "\n", timeout_seconds=30)


def create_bucket(name: str, *, state: State | None = None) -> None:
    """Make a bucket of the root account; one that is there already is fine."""
    try:
        request(state or current(), "PUT", name)
    except ClusterError as e:
        if "BucketAlready" not in str(e):
            raise


def grant(bucket: str, *accounts: str, state: State | None = None) -> None:
    """Let exactly these accounts (and root) use a bucket and all that is in it."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    rule = {"Effect": "Allow", "Principal": {"AWS": list(accounts)}, "Action": "s3:*", "Resource": resources}
    request(state or current(), "PUT", f"{bucket}?policy=", json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
