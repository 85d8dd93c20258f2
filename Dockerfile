# Build with the same scripts as a checkout. `--build-arg RUNTIME=gpu` takes the ONNX Runtime with CUDA and TensorRT;
# give BASE an image that brings CUDA 13, cuDNN 9 and, for TensorRT, TensorRT 10 then.
ARG BASE=debian:12-slim

FROM rust:1.95-slim-bookworm AS build
ARG RUNTIME=auto
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make nasm python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY scripts scripts
RUN scripts/setup --no-models --runtime "$RUNTIME"
COPY Cargo.toml Cargo.lock clippy.toml rustfmt.toml ./
COPY src src
RUN cargo build --release --locked --features turbojpeg

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 ocelli \
    && install --directory --owner=ocelli /var/cache/ocelli /models
COPY --from=build /build/target/release/ocelli /opt/ocelli/ocelli
COPY --from=build /build/.setup/onnxruntime /opt/ocelli/lib
COPY LICENSE /opt/ocelli/LICENSE
USER ocelli
ENV OCELLI_LISTEN=0.0.0.0:8080 \
    OCELLI_MODELS_DIR=/models \
    OCELLI_CACHE_DIR=/var/cache/ocelli
EXPOSE 8080
VOLUME /var/cache/ocelli
# Unhealthy until every model is warm; TensorRT's first engine build takes minutes.
HEALTHCHECK --interval=5s --timeout=2s --start-period=300s --retries=3 \
    CMD ["curl", "--noproxy", "*", "--fail", "--silent", "http://127.0.0.1:8080/readyz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/ocelli/ocelli"]
CMD ["serve"]
