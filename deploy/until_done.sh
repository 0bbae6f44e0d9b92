#!/usr/bin/env bash
# Runs a command again for as long as it ends with exit code 75 (saved, or another process died), and at most ten times
# after it was killed by a signal: what an engine does, for machines without one. Start it on every host alike.
#   bash deploy/until_done.sh python -m zoo.train ...
set -uo pipefail
if (($# == 0)); then
  echo "usage: bash until_done.sh COMMAND..." >&2
  exit 2
fi

readonly run_again=75 most_crashes=10
crashes=0 child=
# The command is told to stop as this script is told: it saves, and this script does not start it again.
stopped=no
stop() { # stop SIGNAL
  stopped=yes
  if [[ -n $child ]]; then kill -s "$1" "$child" 2>/dev/null; fi
}
trap 'stop TERM' TERM
trap 'stop INT' INT
trap 'stop USR1' USR1

while true; do
  "$@" &
  child=$!
  while true; do # a signal ends `wait` before the command has ended
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if ((code > 128)); then crashes=$((crashes + 1)); fi
  if [[ $stopped == yes ]] || ((code != run_again && code <= 128)) || ((crashes > most_crashes)); then
    exit "$code"
  fi
  echo "exit code $code: running it again" >&2
  sleep "${ZOO_PAUSE:-5}"
done
