# The server of docs/serving.md on CPUs. Models are not in the image: mount them below /models.
#
#   docker build --tag glimodern .
#   docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/runs/demo/model:/models/demo:ro" glimodern \
#     /models/demo --host 0.0.0.0 --port 8000

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# Where torch comes from: its index for CPUs, else gigabytes of CUDA libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/venv
WORKDIR /source
COPY constraints.txt ./
# Without what torch needs, which that index has in few versions; it comes with the wheel.
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY csrc csrc
COPY kernels kernels
COPY glimodern glimodern
# The wheel is also made when its extension does not compile; the image is not.
RUN /opt/venv/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && wheel="$(echo /wheels/glimodern-*.whl)" \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt "glimodern[serve] @ file://$wheel"
WORKDIR /
RUN /opt/venv/bin/python -c "import glimodern._C"

FROM python:${PYTHON_VERSION}-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home glimodern
COPY --from=build /opt/venv /opt/venv
# Models come from the volume: nothing is downloaded.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001
WORKDIR /home/glimodern
VOLUME /models
EXPOSE 8000
# Without urllib, which would ask a proxy of the environment.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "glimodern.serve"]
CMD ["--help"]
