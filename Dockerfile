# One image for head, workers and CI: Python, raygrid and its dependencies pinned by clusters/constraints.txt, no root.
#
#   docker build -t raygrid .                                        # head and workers
#   docker build -t raygrid-ci --build-arg EXTRAS=[test] .           # with what the tests need
#
# CUDA comes with PyTorch's own packages: nodes need only the NVIDIA driver and its container toolkit.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
RUN python -m venv /opt/raygrid
WORKDIR /app
COPY clusters/constraints.txt clusters/constraints.txt
COPY pyproject.toml README.md ./
COPY raygrid raygrid
COPY analysis analysis
COPY studies studies
RUN /opt/raygrid/bin/pip install -c clusters/constraints.txt ".${EXTRAS}" boto3

FROM python:${PYTHON}
ARG COMMIT=""
# KubeRay asks nodes for their health with wget
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 raygrid
COPY --from=build /opt/raygrid /opt/raygrid
COPY clusters/nodes /opt/raygrid/nodes
ENV PATH=/opt/raygrid/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAYGRID_COMMIT=${COMMIT} \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000
WORKDIR /home/raygrid
# The image is good only if a grid runs in it from data to report: the icon study, one epoch, on Ray. A network that has
# seen one epoch may have learned nothing, which launch reports with exit code 1; the report must be there all the same.
RUN sh /opt/raygrid/nodes/check.sh /tmp/check
CMD ["python", "-m", "raygrid.launch", "--help"]
