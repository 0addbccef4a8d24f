# The data plane, in the place of Knative's activator. From the root of the repository:
#   docker build -f manifests/images/activator.Dockerfile -t REGISTRY/galaxy-activator:0.1.0 .
# Packages come from the lock files, each checked against its hash; bytecode is by content, so that two builds agree. The
# request path is there in its compiled form, too (activator_replacement/compiled.py); the compiler stays behind.
# Give PYTHON with a digest (python@sha256:...) to fix what is below, too.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
COPY requirements/base.lock /requirements/base.lock
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary=:all: \
    --target=/opt/galaxy/packages --requirement=/requirements/base.lock
COPY kserve_ext /opt/galaxy/source/kserve_ext
COPY activator_replacement /opt/galaxy/source/activator_replacement
RUN python -m compileall -q --invalidation-mode=unchecked-hash /opt/galaxy

FROM ${PYTHON} AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY requirements/base.lock /requirements/base.lock
COPY requirements/dev.lock /requirements/dev.lock
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary=:all: \
    --requirement=/requirements/base.lock --requirement=/requirements/dev.lock
COPY setup.cfg /build/setup.cfg
COPY tools /build/tools
COPY kserve_ext /build/kserve_ext
COPY activator_replacement /build/activator_replacement
WORKDIR /build
RUN GALAXY_CACHE=/opt/galaxy/cache python -m tools.compiled

FROM ${PYTHON}
COPY --from=packages /opt/galaxy /opt/galaxy
COPY --from=compiled /opt/galaxy/cache /opt/galaxy/cache
ENV GALAXY_CACHE=/opt/galaxy/cache
ENV PYTHONPATH=/opt/galaxy/source:/opt/galaxy/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/galaxy/source
USER 65532:65532
EXPOSE 8012 8013 8112 9090
ENTRYPOINT ["python", "-m", "activator_replacement.knative"]
