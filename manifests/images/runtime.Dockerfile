# The runtime: vLLM on CPU with our server, prefill and decode. From the root of the repository:
#   docker build -f manifests/images/runtime.Dockerfile -t REGISTRY/galaxy-runtime:0.1.0 .
# The environment is made by the same set-up as on a developer's machine, from requirements/base.lock and engines.lock with their
# hashes (with the tests' packages, 100 MB); torch for CPU is repacked there (docs/decisions/0001), which needs a compiler. For GPUs, start
# from an image that has vLLM 0.32 and copy the four source folders.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev binutils
COPY tools /build/tools
COPY requirements /build/requirements
WORKDIR /build
RUN GALAXY_CACHE=/build/cache python -m tools.setup --only engines \
    && mkdir -p /opt/galaxy \
    && mv /build/cache/env-engines-*/lib/python3.11/site-packages /opt/galaxy/packages
COPY kserve_ext /opt/galaxy/source/kserve_ext
COPY runtimes /opt/galaxy/source/runtimes
# What a standby pod runs beside them: its slot, and its front.
COPY autoscaler_shim /opt/galaxy/source/autoscaler_shim
COPY activator_replacement /opt/galaxy/source/activator_replacement
RUN python -m compileall -q --invalidation-mode=unchecked-hash /opt/galaxy

FROM ${PYTHON}
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/galaxy /opt/galaxy
ENV PYTHONPATH=/opt/galaxy/source:/opt/galaxy/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/galaxy/source
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "runtimes.vllm_pd"]
