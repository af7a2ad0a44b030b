#!/usr/bin/env bash
# Builds the image and runs docker-compose.yml for real, twice: a run in which an attack worker and a
# node are killed in the middle; and plain `up` with `--scale` and a tap on TLS, in which the driver
# is killed and goes on, and attacks itself. The records are checked, and everything is removed.
#   tests/compose.sh            needs a Docker engine with the compose plugin; says so and skips
#   REQUIRED=1 tests/compose.sh the same, but fails where there is none
# It takes about 8 minutes, more the first time, when the packages of the image of 7 GB are fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; exit 1; }
if ! docker info >/dev/null 2>&1 || ! docker compose version >/dev/null 2>&1; then
  say "SKIPPED: no Docker engine with the compose plugin is here; the compose files were NOT run"
  exit "${REQUIRED:-0}"
fi

# enough rounds, and some that are heard late enough, for all faults to fall into a run under way
export FEDSIM_NODES=3 FEDSIM_ROUNDS=200 FEDSIM_HEARD='[1, 20, 120, 160]' FEDSIM_PAGE_PORT=18321
export COMPOSE_PROFILES=attack COMPOSE_PROJECT_NAME="fedsim-test-$$" COMPOSE_ANSI=never
OUT=$(mktemp -d)
finish() {
  code=$?
  [ $code = 0 ] || docker compose logs --no-color --tail 60 || true
  docker compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  rm -rf "$OUT"
  exit $code
}
trap finish EXIT

in_driver() { docker compose exec -T driver "$@"; }
rounds() { in_driver sh -c 'cat /srv/runs/demo/rounds.jsonl 2>/dev/null | wc -l'; }
until_true() { # SECONDS WHAT COMMAND...
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $limit ] || fail "waited too long for: $what"
    sleep 1
  done
}

docker compose build --quiet
say "the image is built: $(docker image inspect --format '{{.Size}}' fedsim:0.1.0) bytes"
docker compose up --detach --wait --wait-timeout 600 --quiet-pull superlink supernode page attack driver \
  2>&1 | tail -1
say "the federation is up, and well"

# what it promises
for container in $(docker compose ps --quiet); do
  [ "$(docker inspect --format '{{.Config.User}} {{.HostConfig.Privileged}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}' "$container")" \
    = '10001:10001 false true [ALL]' ] || fail "a container is not locked down: $container"
done
[ "$(docker compose port page 8321)" = "127.0.0.1:18321" ] || fail "the page is not on loopback alone"
[ "$(docker compose exec -T superlink stat -c %a /srv/server-key/server.key)" = 600 ] \
  || fail "the key of the server can be read by others"
[ -z "$(docker compose exec -T attack ls /srv/runs/demo/truth)" ] || fail "the attacker has the truth"
until_true 300 "what the attacker is told" docker compose exec -T attack test -f /srv/runs/demo/config.toml
for private in scores.jsonl summary.json report.html pictures rounds.jsonl; do
  if docker compose exec -T attack test -e "/srv/runs/demo/$private"; then
    fail "the attacker has $private"
  fi
done
if docker compose exec -T attack touch /srv/runs/demo/observations/one 2>/dev/null; then
  fail "the attacker can change what was heard"
fi
[ "$(docker compose exec -T attack ls /sys/class/net)" = lo ] || fail "the attacker has a network"
[ "$(docker network inspect --format '{{.Internal}}' "${COMPOSE_PROJECT_NAME}_federation")" = true ] \
  || fail "the federation's network is open"
page=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' \
  "$(docker compose ps --quiet page)")
reach="import socket; socket.create_connection(('$page', 8321), 3)"
docker compose exec -T page python -c "$reach" || fail "the page is not where it is said to be"
if docker compose exec -T supernode python -c "$reach" 2>/dev/null; then
  fail "a node reaches what is outside of the federation"
fi
docker compose exec -T superlink python -c '
import ssl, urllib.error, urllib.request
try:
    urllib.request.urlopen("https://superlink:8000/health", timeout=4)
except urllib.error.URLError as error:
    assert "CERTIFICATE_VERIFY_FAILED" in str(error), error
else:
    raise SystemExit("a certificate of nobody was believed")
' || fail "TLS is not as it should be"
say "users, ports, keys, networks and volumes are as promised"

# faults
until_true 300 "a job under way" in_driver sh -c 'ls /srv/runs/demo/jobs/*.taken.json >/dev/null 2>&1'
docker compose kill attack >/dev/null 2>&1
say "killed the attack worker over a job, in round $(rounds)"
docker compose start attack >/dev/null 2>&1
until_true 300 "round 12" sh -c "[ \$(docker compose exec -T driver sh -c 'wc -l < /srv/runs/demo/rounds.jsonl') -gt 12 ]"
victim=$(docker compose ps --quiet supernode | tail -1)
before=$(rounds)
docker kill "$victim" >/dev/null
say "killed a node in round $before"

# the run goes on
driver=$(docker compose ps --all --quiet driver)
code=$(timeout 900 docker wait "$driver") || fail "the run did not end"
[ "$code" = 0 ] || fail "the driver ended with code $code"
say "the run is over"

# the records
docker compose cp driver:/srv/runs/demo "$OUT/run" >/dev/null 2>&1
python3 - "$OUT/run" "$before" <<'PYTHON'
import json, pathlib, sys

run, killed_in = pathlib.Path(sys.argv[1]), int(sys.argv[2])
lines = lambda name: [json.loads(one) for one in (run / name).read_text().splitlines()]
summary = json.loads((run / "summary.json").read_text())
assert summary["status"] == "done", summary
assert [one["round"] for one in lines("rounds.jsonl")] == list(range(201))
failed = [one for one in lines("events.jsonl") if one["kind"] in ("client-failed", "no-reply")]
assert len({one["client"] for one in failed}) == 1, failed  # the one that was killed, and no other
assert min(one["round"] for one in failed) >= killed_in - 1, failed[0]
scores = lines("scores.jsonl")
told = {(one["observation"], one["attack"]) for one in scores}
heard = {path.stem for path in (run / "observations").glob("*.json")}
gone = failed[0]["client"]
wanted = {
    f"round-{number:05d}-client-{client}-to-server"
    for number in (1, 20, 120, 160) for client in (0, 1) if client != gone or number < killed_in - 1
}
assert wanted <= heard and len(told) == len(scores) == len(heard) * 4, (heard, len(scores))
lost = [one for one in lines("events.jsonl") if one["kind"] == "attack-worker-lost"]
assert lost, "the job of the worker that was killed was not offered again"
assert (run / "report.html").stat().st_size > 10_000
best = max(image["psnr_db"] for one in scores for image in one.get("images") or [{"psnr_db": 0.0}])
print(f"201 rounds, {len(failed)} of them without the killed node; {len(scores)} attacks scored; "
      f"{len(lost)} jobs taken up again; best image {best:.1f} dB")
PYTHON
say "the records are whole"

docker compose down --volumes --timeout 5 >/dev/null 2>&1

# nobody who attacks, two nodes by `--scale`, and a tap that meets TLS
export COMPOSE_PROFILES=tap FEDSIM_MEETING_POINT=tap:8000 FEDSIM_ROUNDS=100 FEDSIM_HEARD='[1]'
docker compose up --detach --wait --wait-timeout 600 --scale supernode=2 \
  superlink supernode page tap driver 2>&1 | tail -1
until_true 300 "round 10 without an attacker" \
  sh -c "[ \$(docker compose exec -T driver sh -c 'cat /srv/runs/demo/rounds.jsonl 2>/dev/null | wc -l') -gt 10 ]"
driver=$(docker compose ps --quiet driver)
before=$(rounds)
docker kill "$driver" >/dev/null
say "killed the driver in round $before"
docker compose start driver >/dev/null 2>&1
code=$(timeout 900 docker wait "$driver") || fail "the second run did not end"
[ "$code" = 0 ] || fail "the driver ended with code $code"
docker compose cp driver:/srv/runs/demo "$OUT/second" >/dev/null 2>&1
python3 - "$OUT/second" <<'PYTHON'
import json, pathlib, sys

run = pathlib.Path(sys.argv[1])
lines = lambda name: [json.loads(one) for one in (run / name).read_text().splitlines()]
assert json.loads((run / "summary.json").read_text())["status"] == "done"
assert [one["round"] for one in lines("rounds.jsonl")] == list(range(101))
scores = lines("scores.jsonl")
assert {one["victim"] for one in scores} == {"client-0", "client-1"}, scores
assert "attack-stand-in" in {one["kind"] for one in lines("events.jsonl")}
traffic = lines("traffic.jsonl")
assert traffic and all(one["encrypted"] for one in traffic), "the tap read what is encrypted"
print(f"101 rounds of two nodes, {len(scores)} attacks by the driver itself, "
      f"{len(traffic)} lines of traffic, all of it encrypted")
PYTHON
say "the second run is over, and its records are whole"

docker compose down --volumes --timeout 5 >/dev/null 2>&1
left=$(docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"
  docker volume ls --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"
  docker network ls --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")
[ -z "$left" ] || fail "something is left: $left"
say "PASSED, and nothing is left"
