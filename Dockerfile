# syntax=docker/dockerfile:1
# The images of compose.yaml, each a target of its own:
#   gpu       a worker with vLLM's CUDA build      docker build --target gpu -t whisper-fleet:gpu .
#   cpu       a worker with vLLM's CPU build, and the bundled whisper-base
#   producer  collector, Flower and the command line: no torch, no vLLM

FROM python:3.11-slim AS build
# A cache mount lies on another file system, where uv cannot link. Bytecode is compiled here: the images' user could not
# keep it, and every start (each health check too) would compile everything again.
ENV UV_CACHE_DIR=/uv-cache UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/venv
RUN pip install --no-cache-dir uv && uv venv "$VIRTUAL_ENV"
# uv reads exclude-dependencies from the pyproject.toml of the folder it runs in.
WORKDIR /source
# Dependencies first: a change of the code installs none of them again.
COPY pyproject.toml ./

FROM build AS build-producer
RUN --mount=type=cache,target=/uv-cache uv pip install -r pyproject.toml --extra flower
COPY README.md ./
COPY producer producer
COPY workers workers
RUN uv pip install --no-deps .

FROM build AS build-cpu
RUN --mount=type=cache,target=/uv-cache \
    uv pip install -r pyproject.toml --extra cpu --extra flower --extra whisper-base --torch-backend cpu
COPY README.md ./
COPY producer producer
COPY workers workers
RUN uv pip install --no-deps .

FROM build AS build-gpu
RUN --mount=type=cache,target=/uv-cache uv pip install -r pyproject.toml --extra gpu --extra flower
COPY README.md ./
COPY producer producer
COPY workers workers
RUN uv pip install --no-deps .

FROM python:3.11-slim AS runtime
# The mount points belong to the user: new volumes take their owner from the image.
RUN useradd --uid 1000 --create-home fleet && install -d -o fleet -g fleet /cache /data /models
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["whisper-fleet"]

FROM runtime AS producer
COPY --from=build-producer /venv /venv
USER fleet

FROM runtime AS worker
# Whatever is fetched, converted or compiled once outlives the container.
ENV WHISPER_MODEL_CACHE=/models HF_HOME=/models/huggingface VLLM_CACHE_ROOT=/models/vllm
CMD ["worker"]

FROM worker AS cpu
# vLLM's CPU build links against libnuma.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cpu /venv /venv
USER fleet

FROM worker AS gpu
# Triton compiles its launchers when the engine starts.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /venv /venv
USER fleet
