# What the scripts share: the cache folder, messages, Postgres. Sourced; needs scripts/versions.env before it.
# shellcheck shell=bash
export DUCKPIPE_CACHE=${DUCKPIPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/duckpipe}
# shellcheck disable=SC2034 # used by those who source this
cache=$DUCKPIPE_CACHE

fail() { echo "duckpipe: $*" >&2; exit 1; }
step() { echo "  $*"; }
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else
    command -v sudo >/dev/null || fail "this needs root, and there is no sudo: $*"
    sudo "$@"
  fi
}
put() { chmod 755 "$1" && mv -f "$1" "$2"; } # a rename: whoever uses the old file keeps it

postgres_bin() { # prints the folder of a Postgres server that is new enough: DUCKPIPE_POSTGRES_BIN, else the distribution's, else the one in PATH
  local dir version best=
  for dir in "${DUCKPIPE_POSTGRES_BIN:-}" "/usr/lib/postgresql/$POSTGRES_DEBIAN/bin" \
    $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -Vr) "$(command -v initdb >/dev/null && dirname "$(command -v initdb)")" /usr/pgsql-*/bin; do
    [ -n "$dir" ] && [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] || continue
    version=$("$dir/postgres" --version | grep -oE '[0-9]+' | head -n 1)
    if [ "${version:-0}" -ge "$POSTGRES_MINIMUM" ]; then best=$dir; break; fi
  done
  [ -n "$best" ] && echo "$best"
}

# Postgres refuses to run as root: then it runs as the distribution's own unprivileged user.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then runuser -u "$(postgres_user)" -- "$@"; else "$@"; fi
}
postgres_user() {
  if [ "$(id -u)" != 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

free_port() { # a port that nobody listens on now
  local port
  while :; do
    port=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
