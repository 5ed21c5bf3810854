# syntax=docker/dockerfile:1.7
# The GPU worker, for linux/amd64:  docker build --platform linux/amd64 --tag <registry>/<name>:<version> .
#
# The base is plain Debian with Python, not an NVIDIA CUDA image: PyTorch's wheels bring every CUDA library they use, and
# the driver comes from the host, so a CUDA base would hold the same gigabytes twice. Nothing is compiled at run time.
#
# What changes least comes first, so that a registry and a host fetch again only what changed: torch and CUDA, the other
# packages, a baked model, the code.

# The CUDA release of the torch wheel that requirements.lock pins; allowedCudaVersions in .runpod/*.json says the same.
ARG CUDA_VERSION=13.0

# ---- tools: uv, and the two halves of the lock ----
FROM python:3.11.15-slim-bookworm AS tools
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /locks
COPY requirements.lock ./
# A layer made from a half is kept as long as that half stays the same, whatever changes in the other.
RUN awk '/^[a-z0-9]/ { heavy = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/ } \
    { print > (heavy ? "torch.lock" : "rest.lock") }' requirements.lock

# ---- packages: one virtual environment, with byte code ----
FROM python:3.11.15-slim-bookworm AS packages
ARG CUDA_VERSION

# Without UV_COMPILE_BYTECODE each fresh container would compile some 3,200 modules again, about 8 s of a cold start.
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/venv

# --no-deps: the lock is complete, and a package that it lacks shall not be fetched without a digest.
COPY --from=tools /locks/torch.lock /locks/
RUN --mount=type=bind,from=tools,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    uv venv /opt/venv && uv pip install --require-hashes --no-deps -r /locks/torch.lock
COPY --from=tools /locks/rest.lock /locks/
RUN --mount=type=bind,from=tools,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --no-deps -r /locks/rest.lock && uv pip check

# A torch of another CUDA release would fail on the very hosts that .runpod/hub.json allows: better here than there.
RUN /opt/venv/bin/python -c "import sys, torch; built = torch.version.cuda; \
    sys.exit(None if built == '${CUDA_VERSION}' else f'torch is built for CUDA {built}, not ${CUDA_VERSION}')"

ENV PATH="/opt/venv/bin:${PATH}"
WORKDIR /app

# ---- model: optional, one model in the image, so that a cold start downloads nothing ----
#   docker build --build-arg MODEL_ID=org/repo [--build-arg MODEL_REVISION=commit] [--secret id=HF_TOKEN,env=HF_TOKEN] .
# The worker's own code fetches it, in a stage of its own: the image gets the files alone. The builder keeps them, so
# that a change of the code neither downloads them again nor changes their layer. The token is in no layer.
FROM packages AS model
ARG MODEL_ID=""
ARG MODEL_REVISION=""
COPY models.yaml models.lock* ./
COPY models/ models/
COPY worker/ worker/
RUN --mount=type=secret,id=HF_TOKEN,required=false \
    --mount=type=cache,id=baked-models,target=/baked \
    install -d /opt/models; \
    if [ -n "${MODEL_ID}" ]; then \
        if [ -f /run/secrets/HF_TOKEN ]; then HF_TOKEN="$(cat /run/secrets/HF_TOKEN)"; export HF_TOKEN; fi; \
        export VOLUME_DIR="/baked/${MODEL_ID}@${MODEL_REVISION}"; \
        python -m worker cache pull "${MODEL_ID}" ${MODEL_REVISION:+--revision "${MODEL_REVISION}"} \
        && cp -a "${VOLUME_DIR}/models/." /opt/models/; \
    fi

# ---- the image ----
FROM packages AS runtime
ARG CUDA_VERSION

LABEL org.opencontainers.image.title="Universal Image Model Worker" \
      org.opencontainers.image.description="A RunPod Serverless worker that runs any image diffusion model behind one small JSON request." \
      org.opencontainers.image.licenses="Apache-2.0" \
      universal-image-model-worker.cuda="${CUDA_VERSION}"

# NVIDIA_*: which parts of the host's driver the container runtime mounts. NVIDIA_REQUIRE_CUDA stays unset: on a host
# with too old a driver the worker starts, says so in one sentence and reports itself unhealthy, instead of crash-looping.
# RUNPOD_LOG_LEVEL: the SDK's default is DEBUG, which writes results into the logs.
# RUNPOD_SKIP_GPU_CHECK: the SDK's GPU check imports torch and multiplies matrices before the first job is taken; the
# worker's own fitness check asks the driver (cuInit) without torch, so the loop is up early.
# hadolint ignore=DL3064
ENV PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RUNPOD_LOG_LEVEL=INFO \
    RUNPOD_SKIP_GPU_CHECK=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TOKENIZERS_PARALLELISM=false

# RunPod mounts network volumes as root's and offers no way to change that, so root is the default: any other user could
# not write the model cache. Elsewhere build with --build-arg RUN_AS=worker (uid 10001) and mount a volume it may write.
RUN useradd --uid 10001 --create-home worker

# A baked model lies off /runpod-volume, which a mounted volume would hide; the worker looks there before it asks the Hub.
# All other models go to the volume (worker/app/setting_groups/models.py): /runpod-volume/models when one is mounted.
COPY --from=model --chown=worker:worker /opt/models /opt/models
# The worker reads both itself.
ARG MODEL_ID=""
ARG MODEL_REVISION=""
ENV MODEL_ID=${MODEL_ID} \
    MODEL_REVISION=${MODEL_REVISION}

# models.lock, if there is one, pins every model to a revision and its files to digests (docs/deploy.md).
COPY LICENSE handler.py models.yaml models.lock* test_input.json ./
COPY models/ models/
COPY image_client/ image_client/
COPY worker/ worker/
RUN python -m compileall -q handler.py image_client worker \
    && install -d -o worker -g worker outputs

ARG RUN_AS=root
USER ${RUN_AS}

# The HTTP server's port (STANDALONE_MODE=1). RunPod's queue needs none, and there the check has nothing to ask.
EXPOSE 8000
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s CMD ["python", "-m", "worker.app.healthcheck"]

# Exec form: Python is process 1 and gets SIGTERM itself, so the job in flight is finished before the worker goes.
CMD ["python", "-u", "handler.py"]
