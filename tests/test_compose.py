"""The compose files are as docs/deployment.md says; `tests/compose.sh` really runs them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAIN = "docker-compose.yml"
ON_TOP = [f"docker-compose.{name}.yml" for name in ("gpu", "originals", "peers", "tap")]
TRUTH = "truth:/srv/runs/demo/truth"
STACKS = [[MAIN], *([MAIN, one] for one in ON_TOP)]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def services(name: str = MAIN) -> dict[str, Any]:
    found: dict[str, Any] = read(name)["services"]
    return found


def every_service() -> list[Any]:
    return [
        pytest.param(service, id=f"{file}-{name}")
        for file in (MAIN, *ON_TOP)
        for name, service in services(file).items()
    ]


def volumes(service: dict[str, Any]) -> list[str]:
    return list(service.get("volumes", []))


def test_there_is_no_compose_file_that_these_tests_do_not_know() -> None:
    assert {path.name for path in ROOT.glob("docker-compose*")} == {MAIN, *ON_TOP}


def test_whoever_attacks_or_taps_does_so_only_behind_a_profile() -> None:
    assert services()["attack"]["profiles"] == ["attack"]
    assert services()["tap"]["profiles"] == ["tap"]
    others = {name for name, one in services().items() if "profiles" not in one}
    assert others == {"prepare", "superlink", "supernode", "driver", "page"}


def test_the_federation_has_no_way_out() -> None:
    assert read(MAIN)["networks"]["federation"]["internal"] is True
    for name in ("superlink", "supernode", "driver", "tap"):
        assert services()[name]["networks"] == ["federation"], name


def test_whoever_attacks_has_no_network_and_whoever_shows_is_not_in_the_federation() -> None:
    assert services()["attack"]["network_mode"] == "none"
    assert services()["prepare"]["network_mode"] == "none"
    assert services()["page"]["networks"] == ["page"]


@pytest.mark.parametrize("service", every_service())
def test_ports_are_open_to_this_machine_alone(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("service", every_service())
def test_nobody_is_privileged_or_at_home_in_the_host(service: dict[str, Any]) -> None:
    assert not {"privileged", "cap_add", "pid", "ipc", "userns_mode", "devices"} & set(service)
    assert service.get("network_mode") in (None, "none")
    assert "user" not in service  # nobody leaves the user of the image
    assert not any(volume.startswith((".", "~", "/var")) for volume in volumes(service))


def test_every_service_is_locked_down_alike() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["image"] == services()["prepare"]["image"], name


@pytest.mark.parametrize("service", every_service())
def test_files_on_top_loosen_nothing(service: dict[str, Any]) -> None:
    assert service.get("read_only", True) is True
    assert service.get("cap_drop", ["ALL"]) == ["ALL"]
    assert service.get("security_opt", ["no-new-privileges:true"]) == ["no-new-privileges:true"]


def test_the_sealed_truth_is_only_where_it_is_written_and_where_it_is_scored() -> None:
    holders = {name for name, one in services().items() if any("truth" in v for v in volumes(one))}

    assert holders == {"supernode", "driver"}


def test_the_truth_is_shown_only_by_the_file_that_says_so_and_never_to_whoever_attacks() -> None:
    for name in ON_TOP:
        holders = {
            service
            for service, one in services(name).items()
            if any("truth" in volume for volume in volumes(one))
        }
        assert holders == ({"page"} if name == "docker-compose.originals.yml" else set()), name
    assert services("docker-compose.originals.yml")["page"]["volumes"] == [f"{TRUTH}:ro"]


def test_whoever_attacks_has_what_was_heard_and_told_and_neither_scores_nor_report() -> None:
    assert set(volumes(services()["attack"])) == {
        "/srv/runs/demo",  # of its own
        "told:/srv/told:ro",
        "observations:/srv/runs/demo/observations:ro",
        "oracle:/srv/runs/demo/oracle:ro",
        "jobs:/srv/runs/demo/jobs",
        "reconstructions:/srv/runs/demo/reconstructions",
        "progress:/srv/runs/demo/progress",
    }
    holders = {name for name, one in services().items() for v in volumes(one) if "records" in v}
    assert holders == {"driver", "tap", "page"}
    for name in ON_TOP:
        assert not services(name).get("attack", {}).get("volumes"), name


def test_what_one_service_leaves_for_another_is_a_volume_that_both_have() -> None:
    driver = {one.split(":")[0] for one in volumes(services()["driver"])}
    for name in ("attack", "tap", "page"):
        shared = {one.split(":")[0] for one in volumes(services()[name]) if ":" in one}
        assert shared <= driver, name


def test_the_key_of_the_server_is_with_the_server_alone() -> None:
    holders = {name for name, one in services().items() for v in volumes(one) if "server-key" in v}

    assert holders == {"prepare", "superlink"}


def test_a_node_keeps_its_key_and_its_memory_in_volumes_without_a_name() -> None:
    assert {"/srv/node", "/srv/runs/demo"} <= set(volumes(services()["supernode"]))
    assert not any(volume.startswith("records:") for volume in volumes(services()["supernode"]))


def test_whoever_only_reads_can_only_read() -> None:
    assert all(one.endswith(":ro") for one in volumes(services()["page"]))
    for name in ("superlink", "supernode", "driver"):
        assert "authority:/srv/authority:ro" in volumes(services()[name]), name


def test_services_that_last_say_whether_they_are_well() -> None:
    for name in ("superlink", "supernode", "attack", "page"):
        assert services()[name]["healthcheck"]["test"][0] == "CMD", name


def test_the_image_has_a_version_and_so_has_everything_in_it() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()

    assert re.fullmatch(r"fedsim:\d+\.\d+\.\d+", services()["prepare"]["image"])
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:3.11-slim"]
    assert any("pip install --constraint constraints.txt" in line for line in lines)
    assert any("PIP_CONSTRAINT=constraints.txt pip install --no-deps ." in line for line in lines)


def test_the_image_runs_as_somebody_who_is_not_root() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert users == ["10001:10001"]
    assert "uid=10001,gid=10001" in read(MAIN)["volumes"]["enrolment"]["driver_opts"]["o"]


def test_code_that_somebody_puts_where_services_start_is_not_run() -> None:
    assert "PYTHONSAFEPATH=1" in (ROOT / "Dockerfile").read_text()


def test_every_place_of_a_volume_is_in_the_image_and_owned_by_its_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    made = set(re.findall(r"/srv/\S+", text.partition("install --directory")[2].split("\n\n")[0]))
    mounted = {
        next(part for part in volume.split(":") if part.startswith("/"))
        for name in (MAIN, *ON_TOP)
        for service in services(name).values()
        for volume in volumes(service)
    }

    assert mounted <= made


def test_the_image_holds_the_program_and_nothing_else_of_this_folder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert ignored[1] == "*"
    assert {line for line in ignored if line.startswith("!")} == {
        f"!{one}"
        for one in (
            "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
            "attacks", "clients", "server", "fedsim",
        )
    }  # fmt: skip


@pytest.mark.parametrize("files", STACKS, ids=lambda files: files[-1])
def test_the_schema_of_compose_files_is_kept(files: list[str]) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")

    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema",
         "--builtin-schema", "vendor.compose-spec", *files],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["off", "attack", "tap"])
@pytest.mark.parametrize("files", STACKS, ids=lambda files: files[-1])
def test_docker_compose_accepts_them(files: list[str], profile: str) -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("docker is not installed")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no compose plugin")
    chosen = [word for file in files for word in ("-f", file)]

    done = subprocess.run(
        [docker, "compose", *chosen, "--profile", profile, "config", "-q"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_the_dockerfile_is_well_made() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed")

    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
