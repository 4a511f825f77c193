# The command mch with everything that it needs.
#
# For the CPU:    docker build -t mch .
# For CUDA:       docker build -t mch --build-arg EXTRAS=scenes,pretrained,serve,gpu .
# A run:          docker run --rm -v "$PWD:/data" mch train --config=scenes_dch --workdir=runs/mine
# As oneself:     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" mch train ...
# The page:       docker run --rm -p 8000:8000 -v "$PWD:/data" mch serve --run=runs/mine --host=0.0.0.0
# With a GPU:     docker run --rm --gpus=all -v "$PWD:/data" mch train --config=scenes_dch
#
# JAX brings CUDA's libraries; the machine needs NVIDIA's driver and container toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG EXTRAS=scenes,pretrained,serve
WORKDIR /src
COPY setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY mch_jax mch_jax
# The package is this folder; setup.cfg bounds the versions of what it needs.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]"
WORKDIR /data
# Users without a home, too, can keep compiled kernels.
ENV HOME=/tmp
ENTRYPOINT ["mch"]
CMD ["--help"]
