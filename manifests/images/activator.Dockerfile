# The data plane, in the place of Knative's activator. From the root of the repository:
#   docker build -f manifests/images/activator.Dockerfile -t REGISTRY/galaxy-activator:0.1.0 .
# Packages come from the lock file, each checked against its hash; nothing is compiled but bytecode, and that by content, so
# that two builds agree. Give PYTHON with a digest (python@sha256:...) to fix what is below, too.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
COPY requirements/base.lock /requirements/base.lock
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary=:all: \
    --target=/opt/galaxy/packages --requirement=/requirements/base.lock
COPY kserve_ext /opt/galaxy/source/kserve_ext
COPY activator_replacement /opt/galaxy/source/activator_replacement
RUN python -m compileall -q --invalidation-mode=unchecked-hash /opt/galaxy

FROM ${PYTHON}
COPY --from=packages /opt/galaxy /opt/galaxy
ENV PYTHONPATH=/opt/galaxy/source:/opt/galaxy/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/galaxy/source
USER 65532:65532
EXPOSE 8012 8013 8112 9090
ENTRYPOINT ["python", "-m", "activator_replacement.knative"]
