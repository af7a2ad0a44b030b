"""Runs on Flower's own processes, with somebody on their links."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fedsim.config import Experiment, parse_experiment
from fedsim.deployment.engine import Deployment, _Federation
from fedsim.engines.in_process import InProcess
from fedsim.errors import RunFailed
from fedsim.files import digest, read_tensors
from fedsim.proxy.listening import rounds_heard
from fedsim.proxy.traffic import by_link, read_traffic
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan


def experiment(*, tls: bool, threat: str = "link-tap", more: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 3
        partition = {{ clients = 2 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        engine = {{ name = "deployment", tls = {str(tls).lower()} }}
        adversary = {{ threat = "{threat}" }}
        {more}
        """
    )


def prepared(folder: Path, tiny: Experiment) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    write_plan(check(tiny), run)
    return run


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize("large", [False, True], ids=["small", "in pieces"])
def test_what_is_rebuilt_from_plain_http_is_what_the_clients_sent_bit_for_bit(
    tmp_path: Path, large: bool
) -> None:
    tiny = experiment(tls=False)
    if large:
        text = tiny.to_toml().replace("hidden = [\n    6,\n]", "hidden = [20000]")
        tiny = parse_experiment(text)
        assert tiny.model.options == {"hidden": [20000]}
    plain, run = prepared(tmp_path, tiny), prepared(tmp_path, tiny)
    InProcess(tiny, plain).train()

    Deployment(tiny, run).train()

    assert [one["kind"] for one in run.events()] == (["training-diverges"] if large else [])
    assert len(run.observation_records()) == 6
    assert run.observation_records() == plain.observation_records()
    assert run.views_sha256() == plain.views_sha256()
    # records name their tensors by digest; the files themselves say the same
    for record in plain.observation_records():
        name = f"observations/{record['id']}.safetensors"
        assert (run.root / name).read_bytes() == (plain.root / name).read_bytes()
    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert rounds_heard(run) == 3
    model = 6_000_000 if large else 1_500
    for link in by_link(read_traffic(run.root)):
        assert not link.encrypted
        assert link.bytes_up > 3 * model
        assert link.bytes_down > 3 * model


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_tls_leaves_sizes_and_times_alone(tmp_path: Path) -> None:
    tiny = experiment(tls=True)
    plain, run = prepared(tmp_path, tiny), prepared(tmp_path, tiny)
    InProcess(tiny, plain).train()

    Deployment(tiny, run).train()

    assert run.events() == []
    assert run.observation_records() == []
    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    links = by_link(read_traffic(run.root))
    assert [one.link for one in links] == ["client-0", "client-1"]
    assert all(one.encrypted for one in links)
    assert all(one.bytes_up > 3 * 1_500 for one in links)


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_tap_that_is_killed_cuts_the_links_and_ends_the_run(tmp_path: Path) -> None:
    class Cut(Deployment):
        def _oversee(self, federation: _Federation) -> None:
            def cut() -> None:
                while not self.run.rounds():
                    time.sleep(0.05)
                assert federation.tap is not None
                os.kill(federation.tap.process.pid, signal.SIGKILL)

            threading.Thread(target=cut, daemon=True).start()
            super()._oversee(federation)

    tiny = experiment(tls=False)
    run = prepared(tmp_path, tiny)

    with pytest.raises(RunFailed, match="tap ended with code -9"):
        Cut(tiny, run).train()
