# PaLM on CPU: trains small models, generates, evaluates, converts and plans. No GPU and no Ascend.
#
#   docker build -t mindspore_palm .
#   docker run --rm mindspore_palm plan --config palm_540b --machine tpu-v4
#   docker run --rm -v "$PWD":/work --user "$(id -u):$(id -g)" mindspore_palm train --config palm_tiny
#
# Run so far: hadolint; pip install of the files below, outside of a container, and palm from there. Not run: docker build.
FROM python:3.11-slim-bookworm

# g++: decoding in C++ and the collectives of CPU workers are built at first use. libgomp1: MindSpore.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md LICENSE MANIFEST.in mindspore_hub_conf.py ./
COPY yaml yaml
COPY mindspore_palm mindspore_palm
RUN pip install --no-cache-dir --no-deps .

# Caches of compiled code go to HOME, which any user may write: --user gives files in /work the caller's own owner.
RUN useradd --create-home --uid 1000 palm \
    && mkdir /work \
    && chown palm /work \
    && chmod 1777 /home/palm
ENV HOME=/home/palm \
    MPLCONFIGDIR=/home/palm/.config/matplotlib
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["palm"]
CMD ["--help"]
