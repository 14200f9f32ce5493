#!/usr/bin/env bash
# make demo: a private Postgres with a small shop, a lake that becomes equal to it and follows a writer, and the same query on both.
#   scripts/demo.sh            the whole demo, anew, under ./demo
#   scripts/demo.sh postgres   starts the demo's Postgres again, to go on by hand
#   scripts/demo.sh clean      stops it and removes ./demo
# DUCKPIPE_DEMO_SECONDS (default 15): how long the writer writes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
top=$PWD
# shellcheck source=scripts/versions.env
. scripts/versions.env
# shellcheck source=scripts/common.sh
. scripts/common.sh
demo=$top/demo
seconds=${DUCKPIPE_DEMO_SECONDS:-15}
program=$top/bin/duckpipe
writer='' sync='' started=''

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# As root, Postgres runs as another user, who often can't reach a checkout below /root: then its folder lies elsewhere, and ./demo/pg leads there.
cluster_folder() {
  if [ "$(id -u)" != 0 ] || as_postgres test -x "$demo" 2>/dev/null; then echo "$demo/pg"; else
    echo "${TMPDIR:-/var/tmp}/duckpipe-demo-$(printf '%s' "$top" | cksum | cut -d' ' -f1)"
  fi
}
pg_ctl() { as_postgres "$bin/pg_ctl" -D "$pg/data" "$@"; }
sql() { PGPASSWORD=demo "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U shop -d shop "$@"; }
duckpipe() { "$program" -c "$demo/duckpipe.toml" "$@"; }

start_postgres() {
  mkdir -p "$demo"
  pg=$(cluster_folder)
  if [ ! -d "$pg/data" ]; then
    rm -rf "$pg"
    mkdir -p "$pg"
    [ "$pg" = "$demo/pg" ] || ln -sfn "$pg" "$demo/pg"
    echo demo >"$pg/password"
    [ "$(id -u)" != 0 ] || chown -R "$(postgres_user)" "$pg"
    chmod 700 "$pg"
    (cd / && as_postgres "$bin/initdb" -D "$pg/data" -U postgres -A scram-sha-256 --pwfile="$pg/password" --no-sync -E UTF8 --locale=C.UTF-8 >/dev/null)
  fi
  if (cd / && pg_ctl status >/dev/null); then port=$(sed -n 4p "$demo/pg/data/postmaster.pid"); return; fi
  port=$(cat "$demo/port" 2>/dev/null || true)
  # The same port as before, so that duckpipe.toml stays right; another one only when somebody took it.
  if [ -z "$port" ] || (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=$(free_port); fi
  echo "$port" >"$demo/port"
  (cd / && pg_ctl -w -s -l "$pg/log" -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c wal_level=logical -c fsync=off" start >/dev/null) ||
    { tail -n 5 "$pg/log" >&2; fail "the demo's Postgres did not start"; }
}

stop_postgres() {
  local folder
  folder=$(cluster_folder)
  if [ -d "$folder/data" ]; then (cd / && pg=$folder && pg_ctl -s -m fast stop >/dev/null 2>&1) || true; fi
}

clean() {
  # A cluster outside the checkout outlives one that was removed by hand: it goes too.
  [ ! -d "$demo" ] || [ -e "$demo/.duckpipe-demo" ] || fail "$demo is not the demo's own folder: remove it yourself"
  [ -z "${bin:-}" ] || stop_postgres
  rm -rf "$(cluster_folder)" "$demo"
}

finish() {
  local status=$?
  trap - EXIT INT TERM
  if [ -d "$demo" ]; then touch "$demo/stop"; fi
  for process in $writer $sync; do { kill "$process" && wait "$process"; } 2>/dev/null || true; done
  if [ -n "$started" ]; then stop_postgres; fi
  if [ $status != 0 ]; then
    if [ -s "$demo/sync.log" ]; then echo "the end of demo/sync.log:" >&2; tail -n 15 "$demo/sync.log" >&2; fi
    echo "duckpipe: the demo failed" >&2
  fi
  exit $status
}

# One line of progress: how many tables are in which state, and the position.
progress() {
  local json
  json=$(duckpipe status --json 2>/dev/null) || { echo "  starting"; return; }
  local states applied lag copied applied_rows
  states=$(grep -o '"state": *"[a-z]*"' <<<"$json" | cut -d'"' -f4 | sort | uniq -c | awk '{printf "%s%s %s", (NR > 1 ? ", " : ""), $1, $2}')
  applied=$(grep -o '"applied_lsn": *"[^"]*"' <<<"$json" | head -n 1 | cut -d'"' -f4 || true)
  lag=$(grep -o '"lag_bytes": *[0-9]*' <<<"$json" | grep -o '[0-9]*$' || true)
  copied=$(grep -o '"rows_copied": *[0-9]*' <<<"$json" | awk -F: '{n += $2} END {print n + 0}')
  applied_rows=$(grep -o '"rows_applied": *[0-9]*' <<<"$json" | awk -F: '{n += $2} END {print n + 0}')
  echo "  tables: ${states:-none yet}; rows copied: $copied, changes applied: $applied_rows; lake at ${applied:-–}, ${lag:-?} bytes behind"
}
streaming() { # all tables
  local json
  json=$(duckpipe status --json 2>/dev/null) || return 1
  [ "$(grep -o '"state": *"streaming"' <<<"$json" | wc -l)" = "$tables" ]
}
reached() { # <lsn>
  local json applied
  json=$(duckpipe status --json 2>/dev/null) || return 1
  applied=$(grep -o '"applied_lsn": *"[^"]*"' <<<"$json" | head -n 1 | cut -d'"' -f4)
  [ -n "$applied" ] && [ "$(sql -At -c "SELECT '$applied'::pg_lsn >= '$1'::pg_lsn")" = t ]
}
wait_until() { # <seconds> <what> <condition...>
  local deadline=$((SECONDS + $1)) what=$2 next=0
  shift 2
  until "$@"; do
    kill -0 "$sync" 2>/dev/null || fail "duckpipe sync ended before: $what"
    [ $SECONDS -lt $deadline ] || fail "not within the time: $what"
    if [ $SECONDS -ge $next ]; then progress; next=$((SECONDS + 2)); fi
    sleep 0.2
  done
  progress
}

bin=$(postgres_bin || true)
case ${1:-} in
  clean) clean; exit ;;
  postgres)
    [ -n "$bin" ] && [ -e "$demo/.duckpipe-demo" ] || fail "there is no demo yet: make demo"
    start_postgres
    echo "the demo's Postgres runs on port $port; make demo-clean stops and removes it"
    echo "  PGPASSWORD=demo psql -h 127.0.0.1 -p $port -U shop shop"
    exit ;;
  '') ;;
  *) fail "unknown: $1 (nothing, postgres, or clean)" ;;
esac

begin=$SECONDS
command -v cargo >/dev/null || fail "there is no cargo: install Rust first, https://rustup.rs"
scripts/bootstrap.sh duckdb extensions postgres
bin=$(postgres_bin)
make --no-print-directory build
[ ! -d "$demo" ] || say "Removing ./demo of the last time"
clean
mkdir -p "$demo"
touch "$demo/.duckpipe-demo"
trap finish EXIT
trap 'exit 130' INT TERM

say "A private Postgres with a small shop (schemas/demo.sql)"
started=yes
start_postgres
PGPASSWORD=demo "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U postgres -d postgres \
  -c "CREATE ROLE shop LOGIN REPLICATION PASSWORD 'demo'" -c "CREATE DATABASE shop OWNER shop"
sql -f schemas/demo.sql
tables=$(sql -At -c "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
sql -At -c "SELECT '  ' || $tables || ' tables, ' || sum(reltuples)::bigint || ' rows, on port $port' FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
cat >"$demo/duckpipe.toml" <<TOML
name = "shop"

[source]
url = "postgres://shop:demo@127.0.0.1:$port/shop"

[lake]
catalog = "lake/catalog.ducklake"
data_path = "lake/data"

[[tables]]
source = "public.*"
TOML

say "duckpipe check"
duckpipe check

say "duckpipe sync: first a snapshot of all tables, then the changes (its log: demo/sync.log)"
"$program" -c "$demo/duckpipe.toml" sync >"$demo/sync.log" 2>&1 & # not by the function: the signal at the end must reach the program itself
sync=$!
wait_until 300 "all tables are copied" streaming

say "A writer inserts, updates and deletes for $seconds s (schemas/demo-writer.sql); the lake follows"
(while [ ! -e "$demo/stop" ]; do sql -f schemas/demo-writer.sql || exit; done) &
writer=$!
until_time=$((SECONDS + seconds))
while [ $SECONDS -lt $until_time ]; do
  kill -0 "$writer" 2>/dev/null || fail "the writer failed"
  kill -0 "$sync" 2>/dev/null || fail "duckpipe sync ended"
  progress
  sleep 2
done
touch "$demo/stop" # not a kill: its last transactions must be done before the mark below
wait "$writer" || fail "the writer failed"
writer=''
# Read inside the last transaction, whose end lies past it: so the lake shows all that was written once it has reached this position.
mark=$(sql -At -c "BEGIN" -c "INSERT INTO events (at, session, kind, payload) VALUES (now(), gen_random_uuid(), 'end of the demo', '{}')" \
  -c "SELECT pg_current_wal_insert_lsn()" -c "COMMIT")
say "The writer stopped at $mark; waiting until the lake shows that"
wait_until 120 "the lake has reached $mark" reached "$mark"

counts=$(sql -At -c "SELECT string_agg(format('SELECT %L AS \"table\", count(*) AS \"rows\" FROM public.%I', tablename, tablename), ' UNION ALL ')
  || ' ORDER BY 1' FROM pg_tables WHERE schemaname = 'public'")
revenue="SELECT c.country, count(DISTINCT o.id) AS orders, sum(i.quantity * i.unit_price) AS revenue
FROM public.customers c JOIN public.orders o ON o.customer_id = c.id JOIN public.order_items i ON i.order_id = o.id
WHERE o.status <> 'returned' GROUP BY c.country ORDER BY c.country"
equal=yes
for query in "$counts" "$revenue"; do
  sql --csv -c "$query" >"$demo/postgres.csv"
  duckpipe query "$query" --format csv >"$demo/lake.csv"
  say "The same query on both"
  [ "$query" = "$counts" ] || sed 's/^/  /' <<<"$query"
  { echo; pr -m -t -w 76 <(echo "Postgres"; echo "--------"; cat "$demo/postgres.csv") <(echo "lake"; echo "----"; cat "$demo/lake.csv") | expand; } | sed 's/^/  /'
  if cmp -s "$demo/postgres.csv" "$demo/lake.csv"; then echo "  equal"; else echo "  NOT EQUAL"; equal=no; fi
done

kill -TERM "$sync"
code=0
wait "$sync" || code=$?
sync=''
[ $code = 0 ] || fail "duckpipe sync ended with exit code $code"
stop_postgres
started=''
[ $equal = yes ] || fail "the lake is not equal to Postgres"
say "Done in $((SECONDS - begin)) s. How to go on:"
cat <<TEXT
  bin/duckpipe -c demo/duckpipe.toml query "SELECT country, count(*) FROM public.customers GROUP BY 1 ORDER BY 2 DESC"
  scripts/demo.sh postgres                           starts the demo's Postgres again
  bin/duckpipe -c demo/duckpipe.toml sync            follows it: goes on where it stopped, and copies nothing again
  bin/duckpipe -c demo/duckpipe.toml status
  bin/duckpipe init                                  writes a duckpipe.toml for your own database
  make demo-clean                                    removes all this
TEXT
