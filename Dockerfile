# syntax=docker/dockerfile:1
# One image for worker, facade, trainer and command line.
#
#   docker build -t dreamdrop .                                      CUDA, with SD 2.1 baked in
#   docker build -t dreamdrop --build-arg MODEL=none .               CUDA, models are downloaded when first asked for
#   docker build -t dreamdrop:cpu --build-arg BASE_IMAGE=debian:bookworm-slim \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu --build-arg MODEL=doodle .
#                                                                    CPU, works offline
#
#   docker run --gpus all -p 80:80 dreamdrop                         the synchronous API on port 80
#   docker run --gpus all dreamdrop worker --store s3://my-bucket    any command of `dreamdrop`

# The CUDA libraries come with torch; this image adds the driver's mount points. Any image with Python 3.11 or newer
# in its package index will do.
ARG BASE_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04

# ---- Python: the interpreter and an init that forwards signals ------------------------------------------------
FROM ${BASE_IMAGE} AS python
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# ---- Dependencies: rebuilt only when pyproject.toml or constraints.txt changes ---------------------------------
FROM python AS dependencies
# An index with another build of torch than the default one, such as a CPU build.
ARG TORCH_INDEX=""
ARG EXTRAS=consumer,web,training
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/dreamdrop
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Empty packages stand in for the code, so that pip reads the dependencies and this layer does not depend on the code.
RUN mkdir consumer producer schemas training infra \
    && touch consumer/__init__.py producer/__init__.py schemas/__init__.py training/__init__.py infra/__init__.py \
    && /opt/dreamdrop/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]" \
    && /opt/dreamdrop/bin/pip uninstall -y dreamdrop

# ---- The model that is baked in --------------------------------------------------------------------------------
FROM dependencies AS model
# A registered name (see `dreamdrop models`), or none. `doodle` is part of the code and needs no download.
ARG MODEL=sd21
ENV HF_HOME=/models PYTHONPATH=/src
COPY schemas schemas
COPY infra infra
COPY consumer consumer
RUN mkdir -p /models \
    && if [ "$MODEL" != none ]; then /opt/dreamdrop/bin/python -m consumer.models.download "$MODEL"; fi

# ---- The code --------------------------------------------------------------------------------------------------
FROM dependencies AS code
COPY . .
RUN /opt/dreamdrop/bin/pip install --no-deps . && /opt/dreamdrop/bin/python -m compileall -q /opt/dreamdrop/lib

# ---- What is shipped -------------------------------------------------------------------------------------------
FROM python AS dreamdrop
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG MODEL=sd21
LABEL org.opencontainers.image.title="Dreamdrop" \
      org.opencontainers.image.description="Event-driven batch processor for image generation over object storage" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, so that Kubernetes can see that it is not root.
ARG USER_ID=10001
RUN groupadd --gid ${USER_ID} dreamdrop \
    && useradd --uid ${USER_ID} --gid ${USER_ID} --home-dir /data --no-create-home --shell /usr/sbin/nologin dreamdrop \
    && install -d -o ${USER_ID} -g ${USER_ID} -m 0770 /data
COPY --from=model /models /models
COPY --from=code /opt/dreamdrop /opt/dreamdrop
# The root file system may be read-only: everything that is written goes below /data and /tmp.
ENV PATH=/opt/dreamdrop/bin:$PATH \
    HOME=/data \
    HF_HOME=/models \
    XDG_CACHE_HOME=/data/cache \
    DREAMDROP_STORE=/data/store \
    DREAMDROP_BAKED_MODEL=${MODEL} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME /data
WORKDIR /data
USER ${USER_ID}:${USER_ID}
EXPOSE 80 9100
STOPSIGNAL SIGTERM
# `dreamdrop healthy` asks the process of this container, whichever command it runs.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20m --retries=3 CMD ["dreamdrop", "healthy"]
ENTRYPOINT ["tini", "--", "dreamdrop"]
CMD ["up", "--host", "0.0.0.0", "--port", "80"]
