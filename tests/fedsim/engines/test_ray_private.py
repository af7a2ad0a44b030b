"""A cluster that is started for a run is for this machine and this user alone."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

CLUSTER = """
import gc, json, os, warnings
warnings.simplefilter("ignore")
import ray
import psutil
from fedsim.engines.ray import join_cluster

join_cluster("local", 2)
own = psutil.Process()
ours = {own.pid, *(one.pid for one in own.children(recursive=True))}
listening = [
    list(one.laddr)
    for one in psutil.net_connections("tcp")
    if one.status == "LISTEN" and one.pid in ours
]
print(json.dumps({
    "address": ray.get_runtime_context().gcs_address,
    "listening": listening,
    "dashboard": ray._private.worker.global_worker.node.webui_url or "",
    "token": os.environ["RAY_AUTH_TOKEN"],
}), flush=True)
input()
ray.shutdown()
"""

STRANGER = """
import sys, warnings
warnings.simplefilter("ignore")
import ray
try:
    ray.init(address=sys.argv[1], logging_level=50, log_to_driver=False)
    print("joined")
except ConnectionError:
    print("refused")
"""


def stranger(address: str, **settings: str) -> str:
    """What comes of joining a cluster from another process with these settings."""
    kept = {name: one for name, one in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # else Ray looks for the address of this machine on its network, where nobody listens
        env=kept | {"RAY_USAGE_STATS_ENABLED": "0", LOOPBACK: "0"} | settings,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_a_cluster_of_our_own_listens_on_loopback_and_refuses_who_has_no_token(
    tmp_path: Path,
) -> None:
    kept = {name: one for name, one in os.environ.items() if not name.startswith("RAY_AUTH")}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=kept | {"HOME": str(tmp_path)},
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        found = json.loads(next(line for line in cluster.stdout if line.startswith("{")))
        address, token = found["address"], found["token"]

        assert found["listening"]
        assert {ip.removeprefix("::ffff:") for ip, _ in found["listening"]} == {"127.0.0.1"}
        assert found["dashboard"] == ""
        assert len(token) == 64
        assert not (tmp_path / ".ray").exists()  # the token is written nowhere
        with ThreadPoolExecutor() as beside:  # who is refused waits for long
            none, other, same = beside.map(
                lambda settings: stranger(address, **settings),
                [
                    {},
                    {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32},
                    {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
                ],
            )
        assert (none, other, same) == ("refused", "refused", "joined")
    finally:
        cluster.stdin.close()
        cluster.stdout.close()
        cluster.wait(timeout=60)


def test_settings_are_given_back_before_a_cluster_of_others_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import ray_constants

    from fedsim.engines import ray_private

    read: list[bool] = []
    monkeypatch.setattr(ray_private, "_read_again", lambda *, cluster: read.append(cluster))
    monkeypatch.setattr(ray_private, "_before", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.delenv(name, raising=False)

    ray_private.keep_to_ourselves()
    ray_private.keep_to_ourselves()

    assert os.environ["RAY_AUTH_MODE"] == "disabled"  # the user's word stands
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64

    ray_private.reach_out()
    ray_private.reach_out()

    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert name not in os.environ
    assert read == [False, False, True]


def test_ray_is_no_older_than_the_version_whose_tokens_were_tested() -> None:
    assert tuple(map(int, version("ray").split(".")[:3])) >= (2, 55, 1)
