# The workflow with its environment: docker build -t selfsup . && docker run --rm --gpus all -v "$PWD/results:/selfsup/results" selfsup
FROM python:3.11-slim

# Any version of git and make does.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /selfsup
COPY requirements.txt ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --requirement requirements.txt
ENV PATH=/selfsup/.venv/bin:$PATH
COPY . .
# Newer than requirements.txt, also where a cached layer has the environment: make must not install it again.
RUN touch .venv/made

CMD ["make", "demo"]
