# docker build --target duckpipe .   the program
# docker build --target minio .      MinIO, which its makers ship as source only
# The same scripts/bootstrap.sh and versions.env as on any machine. No Docker engine checks this file in CI.

FROM rust:1-bookworm AS build
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
COPY scripts scripts
ENV DUCKPIPE_CACHE=/cache DUCKDB_LIB_DIR=/cache/duckdb
RUN scripts/bootstrap.sh duckdb extensions
COPY . .
RUN cargo build --locked --release --bin duckpipe

FROM golang:1.24-bookworm AS build-minio
COPY scripts/versions.env /versions.env
RUN . /versions.env && CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$MINIO_MODULE@$MINIO_VERSION"

FROM debian:bookworm-slim AS minio
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl && rm -rf /var/lib/apt/lists/* \
    && useradd --system minio && install -d -o minio /data
COPY --from=build-minio /go/bin/minio /usr/local/bin/minio
USER minio
VOLUME /data
ENTRYPOINT ["minio", "server", "--address", ":9000", "/data"]

FROM debian:bookworm-slim AS duckpipe
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home duckpipe && install -d -o duckpipe /data
# The program looks for its library in ../lib and for the extensions beside itself.
COPY --from=build /src/target/release/duckpipe /usr/local/bin/duckpipe
COPY --from=build /cache/duckdb/libduckdb.so /usr/local/lib/libduckdb.so
COPY --from=build /cache/extensions /usr/local/bin/extensions
USER duckpipe
WORKDIR /data
VOLUME /data
ENTRYPOINT ["duckpipe"]
CMD ["sync"]
