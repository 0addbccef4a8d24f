# The control plane, in the place of Knative's autoscaler; also the command `galaxy`. From the root of the repository:
#   docker build -f manifests/images/autoscaler.Dockerfile -t REGISTRY/galaxy-autoscaler:0.1.0 .
# See activator.Dockerfile for why it is made this way. Other processes of the control plane, and the command:
#   docker run --entrypoint python IMAGE -m kserve_ext.cli install --dry-run
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
COPY requirements/base.lock /requirements/base.lock
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary=:all: \
    --target=/opt/galaxy/packages --requirement=/requirements/base.lock
COPY manifests /opt/galaxy/source/manifests
COPY kserve_ext /opt/galaxy/source/kserve_ext
COPY autoscaler_shim /opt/galaxy/source/autoscaler_shim
RUN python -m compileall -q --invalidation-mode=unchecked-hash /opt/galaxy

FROM ${PYTHON}
COPY --from=packages /opt/galaxy /opt/galaxy
ENV PYTHONPATH=/opt/galaxy/source:/opt/galaxy/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/galaxy/source
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["python", "-m", "autoscaler_shim.knative"]
