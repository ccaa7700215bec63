#!/usr/bin/env bash
# Runs a training command, and restarts it after an interruption as long as it makes progress.
#
#   supervise.sh [--once] WORKDIR COMMAND...
#
# Exit codes 0 (finished) and 2 (user error) end it. After any other (75: asked to stop; 1, 134: a process is gone) it
# restarts the same command, but at most MAX_STUCK times in a row without a newer checkpoint in WORKDIR.
# SIGTERM and Ctrl-C are passed to the command, which is then not restarted.
#
# --once runs it once, for a scheduler that restarts jobs itself (SLURM, JobSet): exit code 75 = restart,
# 3 = no newer checkpoint after MAX_STUCK restarts, 0 and 2 as above. STATE_FILE stores the count.
set -euo pipefail

: "${MAX_STUCK:=3}"
: "${RESTART_SECONDS:=10}"
: "${STATE_FILE:=}"

CHILD="" STOPPED=false

# newest_step WORKDIR: prints the step of the newest checkpoint, -1 if there is none.
newest_step() {
  local best=-1 name
  for name in "$1"/checkpoints/*/; do
    name=$(basename "$name")
    if [[ $name =~ ^[0-9]+$ ]] && ((10#$name > best)); then best=$((10#$name)); fi
  done
  echo "$best"
}

# gets_on STEP: counts a restart; false after more than MAX_STUCK in a row without a newer checkpoint. The first call
# only records the step at the start.
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

# run_once COMMAND...: runs a command or function, forwards SIGTERM, returns its exit code.
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
    echo "supervise: exit code $code; restarting the same command in $RESTART_SECONDS s (newest checkpoint: $newest)" >&2
    run_once sleep "$RESTART_SECONDS" || true
    if [[ $STOPPED == true ]]; then return "$code"; fi
  done
}

trap pass_on TERM INT

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  if [[ ${1:-} == --once ]]; then
    shift
    : "${STATE_FILE:?must be the file for the number of restarts}"
    mkdir -p "$(dirname "$STATE_FILE")"
    start_once "$@"
  else
    supervise "$@"
  fi
fi
