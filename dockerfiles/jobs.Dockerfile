# Jobs that need no GPU: shard, verify, plan, evaluate.
#
#   docker build -f dockerfiles/jobs.Dockerfile -t quickdraw-jobs:0.1.0 .
#   docker run --rm -v "$PWD/data:/data" --user "$(id -u)" quickdraw-jobs:0.1.0 \
#     jobs.shard --source 'synthetic:?classes=20&per_class=1000' --dest /data/try
#
# Runs as user 10001 and writes only to /scratch.
ARG BASE_IMAGE=python:3.13.9-slim-bookworm

FROM ${BASE_IMAGE} AS build
# torch without CUDA: a tenth of the size.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python3 -m venv /opt/quickdraw
ENV PATH=/opt/quickdraw/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch alone: a layer of several GB that changes only with the constraints.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch numpy
COPY pyproject.toml README.md LICENSE ./
COPY quickdraw_dist quickdraw_dist
COPY jobs jobs
RUN pip install -c constraints.txt '.[report,strokes]'

FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates libcairo2 \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 10001 --no-create-home --home-dir /scratch quickdraw \
  && install -d -o 10001 -g 10001 /scratch
COPY --from=build /opt/quickdraw /opt/quickdraw
ARG REVISION=unknown
LABEL org.opencontainers.image.title="quickdraw-jobs" \
  org.opencontainers.image.description="Shards, verifies and evaluates Quick, Draw! drawings" \
  org.opencontainers.image.version="0.1.0" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/quickdraw/bin:$PATH PYTHONUNBUFFERED=1 HOME=/scratch TMPDIR=/scratch
WORKDIR /scratch
VOLUME /scratch
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["jobs.plan", "--official"]
