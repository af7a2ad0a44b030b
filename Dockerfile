# fedsim in one image: every service of the compose files runs it.
#
# By default pip takes torch as it stands, CUDA included (about 7 GB). For a small image without
# CUDA, name an index of CPU wheels:
#   docker compose build --build-arg PIP_EXTRA_ARGS="--index-url URL-OF-YOUR-CPU-WHEELS --extra-index-url ..."
FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /opt/fedsim

# what changes rarely comes first: dependencies are installed anew only when they change
ARG PIP_EXTRA_ARGS=""
COPY pyproject.toml constraints.txt ./
# hadolint ignore=SC2086
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/dependencies.txt \
    && pip install --constraint constraints.txt --requirement /tmp/dependencies.txt $PIP_EXTRA_ARGS \
    && rm /tmp/dependencies.txt

# one user for all services, and the places where volumes go: new volumes take over their owner
RUN groupadd --system --gid 10001 fedsim \
    && useradd --system --uid 10001 --gid fedsim --no-create-home --shell /usr/sbin/nologin fedsim \
    && install --directory --mode=0700 --owner=fedsim --group=fedsim \
        /srv/runs /srv/runs/demo /srv/runs/demo/truth /srv/runs/demo/alarms /srv/runs/demo/oracle \
        /srv/runs/demo/views /srv/runs/demo/observations /srv/runs/demo/reconstructions \
        /srv/runs/demo/jobs /srv/runs/demo/progress /srv/told /srv/authority /srv/server-key /srv/secret /srv/enrolment /srv/node

COPY README.md LICENSE ./
COPY attacks attacks
COPY clients clients
COPY server server
COPY fedsim fedsim
RUN PIP_CONSTRAINT=constraints.txt pip install --no-deps .

# HOME and caches lie in the one place that may be written in a read-only container
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    OMP_NUM_THREADS=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    RAY_USAGE_STATS_ENABLED=0

USER 10001:10001
WORKDIR /srv/runs
CMD ["fedsim", "--help"]
