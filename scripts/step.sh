#!/usr/bin/env bash
# Runs one step and says how long it took: scripts/step.sh <name> <command...>
name=$1
shift
start=$SECONDS
echo "== $name"
"$@"
status=$?
if [ $status = 0 ]; then echo "== $name: $((SECONDS - start)) s"; else echo "== $name: failed after $((SECONDS - start)) s"; fi
exit $status
