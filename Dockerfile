# syntax=docker/dockerfile:1
# One image for worker, web server, trainer and command line. docs/containers.md describes it.
#
#   docker build -t dreamdrop .                                      CUDA, with SD 2.1 baked in
#   docker build -t dreamdrop --build-arg MODEL=none .               CUDA, models are downloaded when first asked for
#   docker build -t dreamdrop:cpu --build-arg BASE_IMAGE=debian:bookworm-slim --build-arg MODEL=doodle \
#       --build-arg TORCH_INDEX=<url of an index with CPU builds of torch> .
#                                                                    CPU, works offline
#
#   docker run --gpus all -p 80:80 dreamdrop                         a worker and the web server, on port 80
#   docker run --gpus all dreamdrop worker --store s3://my-bucket    any command of `dreamdrop`

# torch brings the CUDA libraries along; the base has what the driver mounts into. Any image with apt and Python 3.11
# or newer will do.
ARG BASE_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04

# ---- Python: the interpreter, and an init that forwards signals and reaps children -----------------------------
FROM ${BASE_IMAGE} AS python
# Versions are the base image's: it is pinned, and its security updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# ---- Dependencies: built again only when pyproject.toml or constraints.txt changes -----------------------------
FROM python AS dependencies
# An index with another build of torch than the default one, such as a CPU build.
ARG TORCH_INDEX=""
ARG EXTRAS=consumer,web,training
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Empty packages stand in for the code: pip reads the dependencies, and this layer does not depend on the code.
RUN python3 -m venv /opt/dreamdrop \
    && mkdir consumer producer schemas training infra \
    && touch consumer/__init__.py producer/__init__.py schemas/__init__.py training/__init__.py infra/__init__.py \
    && /opt/dreamdrop/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]" \
    && /opt/dreamdrop/bin/pip uninstall -y dreamdrop

# ---- The model that is baked in: downloaded again only when the cards or the wire contract change --------------
FROM dependencies AS model
# A registered name (see `dreamdrop models`), or none. `doodle` is part of the code and needs no download.
ARG MODEL=sd21
ENV DREAMDROP_BAKED_MODELS=/models HF_HUB_DISABLE_TELEMETRY=1
COPY schemas schemas
COPY infra/__init__.py infra/__init__.py
COPY infra/models infra/models
RUN mkdir /models && PYTHONPATH=/src /opt/dreamdrop/bin/python -P -m infra.models.download "$MODEL"

# ---- The code: a folder of its own beside the dependencies -----------------------------------------------------
FROM dependencies AS code
COPY . .
RUN /opt/dreamdrop/bin/pip install --no-deps --target /opt/code .

# ---- What is shipped -------------------------------------------------------------------------------------------
FROM python AS dreamdrop
# A number, so that Kubernetes can see that it is not root.
ARG USER_ID=10001
RUN groupadd --gid "${USER_ID}" dreamdrop \
    && useradd --uid "${USER_ID}" --gid "${USER_ID}" --home-dir /data --no-create-home --shell /usr/sbin/nologin dreamdrop \
    && install -d -m 1777 /data
# Largest and oldest first: a change of the code makes the last layer only.
COPY --from=dependencies /opt/dreamdrop /opt/dreamdrop
COPY --from=model /models /models
COPY --from=code /opt/code /opt/code
# auto: sd21 where CUDA is, else doodle.
ARG DEFAULT_MODEL=auto
# The root file system may be read-only, and the user any number: all that is written goes below /data and /tmp.
ENV PATH=/opt/code/bin:/opt/dreamdrop/bin:$PATH \
    PYTHONPATH=/opt/code \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/torchinductor \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DREAMDROP_BAKED_MODELS=/models \
    DREAMDROP_MODEL=${DEFAULT_MODEL} \
    DREAMDROP_STORE=/data/store \
    DREAMDROP_HOST=0.0.0.0 \
    DREAMDROP_PORT=80 \
    DREAMDROP_METRICS_PORT=9100
VOLUME /data
WORKDIR /data
USER ${USER_ID}:${USER_ID}
EXPOSE 80 9100
STOPSIGNAL SIGTERM
# It asks the ports of DREAMDROP_METRICS_PORT (a worker) and DREAMDROP_PORT (a web server), whichever is listened on.
HEALTHCHECK --interval=15s --timeout=10s --start-period=2m --retries=3 CMD ["python", "-P", "-m", "infra.health"]
ENTRYPOINT ["tini", "--", "dreamdrop"]
# Without keys, as the documented client has none. DREAMDROP_API_KEYS closes it: then keys are asked for all the same.
CMD ["up", "--without-keys"]
# Last, so that another revision changes no layer.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Dreamdrop" \
      org.opencontainers.image.description="Event-driven batch processor for image generation over object storage" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
