#!/usr/bin/env bash
# Starts a training command again while it asks for that and gets on.
#
#   supervise.sh [--once] WORKDIR COMMAND...
#
# Exit code 0 (finished) and 2 (a mistake to mend) end it. Anything else (75: asked to stop; 1, 134: a process is gone)
# starts the same command again, but not more than MAX_STUCK times in a row without a newer checkpoint in WORKDIR.
# SIGTERM or Ctrl-C goes to the command, and then nothing is started again.
#
# --once runs it once, for a scheduler that starts again itself (SLURM, JobSet): exit code 75 = start again,
# 3 = no newer checkpoint after MAX_STUCK restarts, 0 and 2 as above. The count is kept in STATE_FILE.
set -euo pipefail

: "${MAX_STUCK:=3}"
: "${RESTART_SECONDS:=10}"
: "${STATE_FILE:=}"

CHILD="" STOPPED=false

# newest_step WORKDIR: prints the newest checkpoint's step, -1 without any.
newest_step() {
  local best=-1 name
  for name in "$1"/checkpoints/*/; do
    name=$(basename "$name")
    if [[ $name =~ ^[0-9]+$ ]] && ((10#$name > best)); then best=$((10#$name)); fi
  done
  echo "$best"
}

# gets_on STEP: counts a restart; false where MAX_STUCK of them in a row have brought no newer checkpoint. The first call
# only notes where the run begins.
gets_on() {
  local best=-2 stuck=0
  if [[ -s $STATE_FILE ]]; then read -r best stuck < "$STATE_FILE"; fi
  if (($1 > best)); then best=$1 stuck=0; else stuck=$((stuck + 1)); fi
  echo "$best $stuck" > "$STATE_FILE"
  ((stuck <= MAX_STUCK))
}

pass_on() {
  STOPPED=true
  if [[ -n $CHILD ]]; then kill -TERM "$CHILD" 2> /dev/null || true; fi
}

# run_once COMMAND...: runs a command or function, passes SIGTERM on, returns its exit code.
run_once() {
  local code=0
  if [[ $STOPPED == true ]]; then return 75; fi
  "$@" &
  CHILD=$!
  # A signal ends `wait` before the command ends.
  while true; do
    code=0
    wait "$CHILD" || code=$?
    kill -0 "$CHILD" 2> /dev/null || break
  done
  if ((code > 128)); then
    local again=0
    wait "$CHILD" 2> /dev/null || again=$?
    if ((again != 127)); then code=$again; fi
  fi
  CHILD=""
  return "$code"
}

# start_once WORKDIR COMMAND...: see --once above.
start_once() {
  local workdir=$1 code=0
  shift
  if [[ ! -s $STATE_FILE ]]; then gets_on "$(newest_step "$workdir")"; fi
  run_once "$@" || code=$?
  if ((code == 0 || code == 2)); then return "$code"; fi
  if ! gets_on "$(newest_step "$workdir")"; then
    echo "supervise: exit code $code, and no newer checkpoint after $MAX_STUCK restarts: giving up" >&2
    return 3
  fi
  return 75
}

supervise() {
  local workdir=$1 code=0 newest
  shift
  STATE_FILE=$(mktemp)
  trap 'rm -f "$STATE_FILE"' EXIT
  newest=$(newest_step "$workdir")
  gets_on "$newest"
  while true; do
    code=0
    run_once "$@" || code=$?
    if ((code == 0 || code == 2)) || [[ $STOPPED == true ]]; then return "$code"; fi
    newest=$(newest_step "$workdir")
    if ! gets_on "$newest"; then
      echo "supervise: exit code $code, and no newer checkpoint after $MAX_STUCK restarts: giving up" >&2
      return "$code"
    fi
    echo "supervise: exit code $code; starting the same command again in $RESTART_SECONDS s (newest checkpoint: $newest)" >&2
    run_once sleep "$RESTART_SECONDS" || true
    if [[ $STOPPED == true ]]; then return "$code"; fi
  done
}

trap pass_on TERM INT

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  if [[ ${1:-} == --once ]]; then
    shift
    : "${STATE_FILE:?where the number of starts is kept}"
    mkdir -p "$(dirname "$STATE_FILE")"
    start_once "$@"
  else
    supervise "$@"
  fi
fi
