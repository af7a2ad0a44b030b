"""The parts of a deployment, each started by a function of its own.

The fault harness and the recording proxy start the same parts, one by one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.config import Experiment
from fedsim.deployment.certificates import Certificates, write_secret
from fedsim.deployment.processes import Part, start
from fedsim.wire import PARTITION

HOST = "127.0.0.1"
SUPERLINK = "fedsim.deployment.superlink"
SUPERNODE = "fedsim.deployment.supernode"
EXECUTOR = "fedsim.deployment.executor"
SERVER_APP = "fedsim.deployment.serverapp"
TAP = "fedsim.proxy"


@dataclass(frozen=True)
class Site:
    """Where the parts of one deployment keep their things.

    Attributes:
        home: Folder for certificates, keys and Flower's own files, which its owner alone may enter.
        logs: Folder for what the parts say.
    """

    home: Path
    logs: Path

    @property
    def secret(self) -> Path:
        """What a SuperNode and its executor share, so that nobody else can take its tasks."""
        path = self.home / "executor.secret"
        if not path.is_file():
            write_secret(path, os.urandom(32))
        return path


def start_superlink(site: Site, port: int, certificates: Certificates | None) -> Part:
    """Start a SuperLink; it lets in who is registered, or, without certificates, everybody."""
    options = ["--host", HOST, "--port", str(port), "--isolation", "process"]
    options += ["--superexec-auth-secret-file", str(site.secret)]
    options += ["--disable-runtime-dependency-installation"]
    if certificates is None:
        options += ["--insecure"]
    else:
        options += ["--ssl-ca-certfile", str(certificates.authority)]
        options += ["--ssl-certfile", str(certificates.server)]
        options += ["--ssl-keyfile", str(certificates.key), "--enable-supernode-auth"]
    return start("superlink", SUPERLINK, options, home=site.home, logs=site.logs)


def start_supernode(
    site: Site,
    number: int,
    *,
    of: int,
    superlink: str,
    port: int,
    authority: Path | None,
    key: Path | None,
) -> Part:
    """Start the SuperNode that plays client `number`.

    Args:
        site: Where things are.
        number: The client.
        of: Clients in all.
        superlink: HOST:PORT where it reaches the SuperLink, or what stands before it.
        port: Of its own Runtime API, for its executor.
        authority: Whom it trusts to say who the SuperLink is; None means plain HTTP.
        key: Its private key; None means that it is let in without one.
    """
    options = ["--superlink", superlink, "--host", HOST, "--port", str(port)]
    options += ["--isolation", "process", "--superexec-auth-secret-file", str(site.secret)]
    options += ["--node-config", f"{PARTITION}={number} num-partitions={of}"]
    if authority is None:
        options += ["--insecure"]
    else:
        options += ["--root-certificates", str(authority)]
    if key is not None:
        options += ["--auth-supernode-private-key", str(key)]
    return start(
        f"supernode-{number}",
        SUPERNODE,
        options,
        home=site.home,
        logs=site.logs,
    )


def start_executor(site: Site, ports: Sequence[int], experiment: Experiment | None = None) -> Part:
    """Start what plays the ClientApps of SuperNodes.

    Args:
        site: Where things are.
        ports: Of the Runtime APIs of the SuperNodes.
        experiment: What they will be asked about, if it is known.
    """
    options = ["--superexec-auth-secret-file", str(site.secret)]
    options += ["--memory", str(site.home / "executor")]
    if experiment is not None:
        known = site.home / "experiment.json"
        known.write_text(experiment.model_dump_json())
        options += ["--experiment", str(known)]
    for port in ports:
        options += ["--supernode", f"{HOST}:{port}"]
    return start("executor", EXECUTOR, options, home=site.home, logs=site.logs)


def start_server_app(site: Site, superlink: str, authority: Path | None) -> Part:
    """Start what carries out the run."""
    options = ["--superlink", superlink, "--superexec-auth-secret-file", str(site.secret)]
    if authority is not None:
        options += ["--root-certificates", str(authority)]
    return start("serverapp", SERVER_APP, options, home=site.home, logs=site.logs)


def start_tap(site: Site, superlink: str, ports: Sequence[int], run: Path) -> Part:
    """Start who stands between nodes and SuperLink and listens.

    Args:
        site: Where things are.
        superlink: HOST:PORT where it reaches the SuperLink.
        ports: Where the SuperNode of each client reaches it, by number of the client.
        run: The run directory, where what it hears goes.
    """
    options = ["--upstream", superlink, "--run", str(run.resolve())]
    for client, port in enumerate(ports):
        options += ["--listen", f"client-{client}@{HOST}:{port}"]
    return start("tap", TAP, options, home=site.home, logs=site.logs)
