"""The cluster's own authority, certificates and kubeconfigs, made with openssl; good for one life of the cluster."""

from __future__ import annotations

from pathlib import Path

from cluster.network import API_SERVICE, HEAD, PLACES
from cluster.process import run
from cluster.state import State, write_json

API_PORT = 6443
API_URL = f"https://{HEAD.address}:{API_PORT}"
DAYS = "3650"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")


def folder(state: State) -> Path:
    """Where keys and certificates lie."""
    return state.run / "pki"


def make(state: State) -> None:
    """Make every key, certificate and kubeconfig; each is (re)made whole, so a killed predecessor doesn't matter."""
    where = folder(state)
    where.mkdir(parents=True, exist_ok=True)
    where.chmod(0o700)
    for authority in ("ca", "front-proxy-ca"):
        subject = f"/CN=stageline-{authority}"
        key, crt = where / f"{authority}.key", where / f"{authority}.crt"
        run(state, ["openssl", "req", "-x509", *NEW_KEY, key, "-subj", subject, "-days", DAYS, "-out", crt])
    run(state, ["openssl", "genrsa", "-out", where / "service-account.key", "2048"])
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [HEAD.address, "127.0.0.1", API_SERVICE]
    sign(state, "api-server", "/CN=kube-apiserver", names=[*names, "localhost"], addresses=addresses)
    sign(state, "api-server-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    sign(state, "front-proxy-client", "/CN=front-proxy-client", authority="front-proxy-ca")
    for p in PLACES:
        sign(state, f"kubelet-{p.name}", f"/O=system:nodes/CN=system:node:{p.name}")
        user = f"/O=system:nodes/CN=system:node:{p.name}"
        sign(state, f"serving-{p.name}", user, names=[p.name], addresses=[p.address])
        kubeconfig(state, f"kubelet-{p.name}")
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        sign(state, name, f"/CN=system:{name}")
        kubeconfig(state, name)
    sign(state, "admin", "/O=system:masters/CN=admin")
    kubeconfig(state, "admin", state.kubeconfig)


def sign(
    state: State,
    name: str,
    subject: str,
    *,
    authority: str = "ca",
    names: list[str] | None = None,
    addresses: list[str] | None = None,
) -> None:
    """Make a key and a certificate for it. With names or addresses it is a server's too."""
    where = folder(state)
    alternatives = ",".join([f"DNS:{n}" for n in names or []] + [f"IP:{a}" for a in addresses or []])
    usage = "clientAuth,serverAuth" if alternatives else "clientAuth"
    extensions = f"keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage={usage}\n"
    if alternatives:
        extensions += f"subjectAltName={alternatives}\n"
    file = where / f"{name}.ext"
    file.write_text(extensions)
    key, csr = where / f"{name}.key", where / f"{name}.csr"
    run(state, ["openssl", "req", "-new", *NEW_KEY, key, "-subj", subject, "-out", csr])
    signer = ["-CA", where / f"{authority}.crt", "-CAkey", where / f"{authority}.key", "-CAcreateserial"]
    request = ["-req", "-in", csr, "-days", DAYS, "-extfile", file]
    run(state, ["openssl", "x509", *request, *signer, "-out", where / f"{name}.crt"])


def kubeconfig(state: State, name: str, target: Path | None = None) -> None:
    """Write the kubeconfig of one user, with everything inside it: it can be moved."""
    where = folder(state)
    data = {key: run(state, ["base64", "-w0", where / file]) for key, file in (
        ("ca", "ca.crt"), ("crt", f"{name}.crt"), ("key", f"{name}.key")
    )}  # fmt: skip
    cluster = {"server": API_URL, "certificate-authority-data": data["ca"]}
    user = {"client-certificate-data": data["crt"], "client-key-data": data["key"]}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "stageline", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "stageline", "context": {"cluster": "stageline", "user": name}}],
        "current-context": "stageline",
    }
    write_json(target or where / f"{name}.kubeconfig", document)
