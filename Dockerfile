# One image for every service; what runs is said by the command. docs/compose.md tells how to build it.
#
#   BASE  a Debian 12 with Python 3.11; pin it by digest (python:3.11-slim-bookworm@sha256:...), or make it
#         with tools/base_image.sh where no registry can be reached
#   LOCK  server.lock: the services and LiteRT; tensorflow.lock: TensorFlow too
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG LOCK=server.lock
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_HTTP_TIMEOUT=180
WORKDIR /build
# var/ca-bundle.pem is optional: roots of a proxy through which the package index is reached. This stage only.
COPY pyproject.toml var/ca-bundle.pe[m] ./
COPY requirements/build.lock requirements/${LOCK} requirements/
RUN if [ -e ca-bundle.pem ]; then export PIP_CERT=/build/ca-bundle.pem SSL_CERT_FILE=/build/ca-bundle.pem; fi \
 && python3 -m venv tools \
 && tools/bin/pip install -q --require-hashes -r requirements/build.lock \
 && python3 -m venv --without-pip /opt/sealane \
 && tools/bin/uv pip install -q --python /opt/sealane/bin/python --require-hashes --compile-bytecode \
      -r requirements/${LOCK}
COPY README.md ./
COPY src src
COPY services services
RUN tools/bin/hatchling build -t wheel \
 && tools/bin/uv pip install -q --python /opt/sealane/bin/python --no-deps --compile-bytecode dist/*.whl
# Volumes take owner and mode of the folder that they are first mounted on.
RUN mkdir -p /image/data /image/keys /image/join /image/site /image/enroll/registry /image/enroll/scheduler \
      /image/enroll/inference /image/enroll/cloud-1 /image/enroll/edge-1 \
 && chown -R 10001:10001 /image/* && chmod -R 0700 /image/*

FROM ${BASE}
LABEL org.opencontainers.image.title="sealane" \
      org.opencontainers.image.description="Services of Sealane: auth, registry, scheduler, inference, worker" \
      org.opencontainers.image.licenses="Apache-2.0"
# glibc maps and unmaps memory for every large message as it comes; these keep it.
ENV PATH=/opt/sealane/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=268435456 \
    MALLOC_TOP_PAD_=67108864
COPY --from=build /opt/sealane /opt/sealane
COPY --from=build /image/ /
WORKDIR /data
# By number: no entry in passwd is needed, and orchestrators can see that it is not root.
USER 10001:10001
ENTRYPOINT ["python", "-P", "-m"]
CMD ["sealane_auth"]
