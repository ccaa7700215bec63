# One image for each kind of device:
#
#   docker build --build-arg ACCELERATOR=cpu --tag hybrid_jax:cpu .      (or tpu, or gpu)
#   docker run --rm --volume "$PWD/runs:/runs" hybrid_jax:cpu --config=configs/quickstart.py --workdir=/runs/quickstart
#   docker run --rm --gpus all --shm-size 8g ... hybrid_jax:gpu ...      (CUDA comes with the packages, the driver with the host)
#
# Not built here: there was no engine. The digest is the one that several public repositories give for this tag.
FROM python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

ARG ACCELERATOR=cpu

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --create-home --uid 1000 hybrid && mkdir /runs && chown hybrid /runs

WORKDIR /app
# The packages before configs and scripts, which change more often.
COPY setup.py pyproject.toml constraints-py312.txt README.md LICENSE ./
COPY hybrid_jax/ hybrid_jax/
RUN case "$ACCELERATOR" in \
      cpu) extras=gcp,tensorboard ;; \
      tpu) extras=gcp,tensorboard,tpu ;; \
      gpu) extras=gcp,tensorboard,cuda ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: must be cpu, tpu or gpu" >&2; exit 2 ;; \
    esac \
    && pip install --editable ".[$extras]" --constraint constraints-py312.txt
COPY configs/ configs/
COPY launch/ launch/

USER 1000
# PID 1 must be what handles SIGTERM: no shell before it.
ENTRYPOINT ["python", "-m", "hybrid_jax.main"]
CMD ["--help"]
