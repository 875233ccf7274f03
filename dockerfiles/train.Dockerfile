# Training on NVIDIA GPUs: torch's wheels bring CUDA, the node brings the driver.
#
#   docker build -f dockerfiles/train.Dockerfile -t quickdraw-train:0.1.0 .
#   docker run --rm --gpus all --shm-size 8g quickdraw-train:0.1.0 quickdraw_dist.launch \
#     --nproc-per-node 8 -m quickdraw_dist.train --data gs://BUCKET/quickdraw --output gs://BUCKET/run
#
# Runs as user 10001 and writes only to /scratch. Without GPUs, and several GB smaller:
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG BASE_IMAGE=python:3.13.9-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
RUN python3 -m venv /opt/quickdraw
ENV PATH=/opt/quickdraw/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch alone: a layer of several GB that changes only with the constraints.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch numpy
COPY pyproject.toml README.md LICENSE ./
COPY quickdraw_dist quickdraw_dist
COPY jobs jobs
RUN pip install -c constraints.txt '.[report]'

FROM ${BASE_IMAGE}
# torch.compile compiles C and C++ at run time, against Python's headers. Debian has these in a
# separate package; the python images include them.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates g++ gcc libc6-dev \
  && include=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))') \
  && if [ ! -e "$include/Python.h" ]; then \
    apt-get install -y --no-install-recommends python3-dev; fi \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 10001 --no-create-home --home-dir /scratch quickdraw \
  && install -d -o 10001 -g 10001 /scratch
COPY --from=build /opt/quickdraw /opt/quickdraw
ARG REVISION=unknown
LABEL org.opencontainers.image.title="quickdraw-train" \
  org.opencontainers.image.description="Trains Quick, Draw! classifiers, on any number of GPUs" \
  org.opencontainers.image.version="0.1.0" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/quickdraw/bin:$PATH PYTHONUNBUFFERED=1 \
  HOME=/scratch TMPDIR=/scratch \
  TORCHINDUCTOR_CACHE_DIR=/scratch/inductor TRITON_CACHE_DIR=/scratch/triton
WORKDIR /scratch
VOLUME /scratch
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["quickdraw_dist.launch", "--help"]
