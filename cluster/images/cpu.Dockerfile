# The image of nodes without GPUs: a trial on a small cluster, with vLLM's CPU build. Build it from the root of the repository:
#   docker build -f cluster/images/cpu.Dockerfile -t REGISTRY/dream-ray:cpu-0.1.0 .
# No credential is copied in: see cpu.Dockerfile.dockerignore beside this file for what is sent to the build at all.
FROM python:3.11.14-slim-bookworm

# wget: KubeRay's own probes. gcc and headers: torch and vLLM compile at run time. tini: reaps children.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgl1 libglib2.0-0 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray \
    && install -d -o ray -g ray /models

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
COPY requirements/cpu.txt requirements/no-deps.txt /opt/requirements/
RUN python -m pip install --no-deps -r /opt/requirements/cpu.txt -r /opt/requirements/no-deps.txt

WORKDIR /opt/dream_ray
COPY pyproject.toml README.md ./
COPY dream_ray dream_ray
COPY jobs jobs
COPY configs configs
COPY cluster/fetch_models.py cluster/fetch_models.py
RUN python -m pip install --no-deps --no-build-isolation .

USER 1000
WORKDIR /home/ray
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["bash"]
