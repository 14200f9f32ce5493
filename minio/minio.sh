#!/usr/bin/env bash
# A private MinIO without Docker and without the mc client.
#   minio/minio.sh start <folder> [bucket]        starts a server on a free port of 127.0.0.1, with its data in <folder>, and makes the bucket
#   minio/minio.sh credentials <folder> <bucket>  prints, as exports, credentials for seven days that can do only what policy.json allows on the bucket
#   minio/minio.sh stop <folder>
# The root user comes from the environment (MINIO_ROOT_USER, MINIO_ROOT_PASSWORD), else from minio.env.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/versions.env
. "$here/../scripts/versions.env"
# shellcheck source=scripts/common.sh
. "$here/../scripts/common.sh"
while IFS='=' read -r name value; do # what the environment already says wins
  case $name in MINIO_*) [ -n "${!name:-}" ] || export "$name=$value" ;; esac
done <"$here/minio.env"

[ $# -ge 2 ] || fail "usage: minio/minio.sh start|credentials|stop <folder> [bucket]"
command=$1 folder=$2 bucket=${3:-}
program=${DUCKPIPE_MINIO:-$cache/minio}

# A signed request. The secret goes through the standard input: a command line can be read by every user of the machine.
request() { # <service> <curl arguments...>
  local service=$1
  shift
  printf 'user = "%s:%s"\n' "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" |
    curl --noproxy '*' -sS --fail-with-body -K - --aws-sigv4 "aws:amz:$MINIO_REGION:$service" "$@"
}
address() { cat "$folder/address" 2>/dev/null || fail "no server was started in $folder"; }
make_bucket() {
  if ! request s3 -o /dev/null -I "http://$(address)/$bucket" 2>/dev/null; then request s3 -X PUT "http://$(address)/$bucket"; fi
}

case $command in
  start)
    if [ -e "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; then fail "a server already runs in $folder: minio/minio.sh stop $folder"; fi
    "$here/../scripts/bootstrap.sh" minio
    mkdir -p "$folder/data"
    port=$(free_port)
    echo "127.0.0.1:$port" >"$folder/address"
    nohup "$program" server --quiet --address "127.0.0.1:$port" --console-address 127.0.0.1:0 "$folder/data" >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    deadline=$((SECONDS + 60))
    # Its health page says ready a moment before it takes requests.
    until request s3 -o /dev/null "http://127.0.0.1:$port/" 2>/dev/null; do
      kill -0 "$(cat "$folder/pid")" 2>/dev/null && [ $SECONDS -lt $deadline ] || { tail -n 20 "$folder/log" >&2; fail "MinIO did not start"; }
      sleep 0.1
    done
    [ -z "$bucket" ] || make_bucket
    echo "MinIO serves http://127.0.0.1:$port${bucket:+, bucket $bucket}" ;;
  credentials)
    [ -n "$bucket" ] || fail "which bucket?"
    answer=$(request sts -X POST "http://$(address)/" --data-urlencode Action=AssumeRole --data-urlencode Version=2011-06-15 \
      --data-urlencode DurationSeconds=604800 --data-urlencode "Policy=$(sed "s/BUCKET/$bucket/" "$here/policy.json")") || fail "MinIO refused: $answer"
    part() { sed -n "s|.*<$1>\([^<]*\)</$1>.*|\1|p" <<<"$answer"; }
    echo "export AWS_ENDPOINT_URL_S3=http://$(address) AWS_REGION=$MINIO_REGION"
    echo "export AWS_ACCESS_KEY_ID=$(part AccessKeyId) AWS_SECRET_ACCESS_KEY=$(part SecretAccessKey)"
    echo "export AWS_SESSION_TOKEN=$(part SessionToken)" ;;
  stop)
    if [ -e "$folder/pid" ]; then
      process=$(cat "$folder/pid")
      kill "$process" 2>/dev/null || true
      while kill -0 "$process" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$process/status" 2>/dev/null; do sleep 0.1; done
      rm -f "$folder/pid"
    fi ;;
  *) fail "unknown: $command" ;;
esac
