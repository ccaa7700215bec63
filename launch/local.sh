#!/usr/bin/env bash
# Trains on this machine with several processes: one per GPU, or PROCESSES on the CPU.
#
#   launch/local.sh [--dry_run] [FLAG...]      flags of hybrid_jax.main, such as --config.train.batch_size=64
set -euo pipefail

CONFIG=${CONFIG:-configs/quickstart.py}
WORKDIR=${WORKDIR:-runs/local}
PROCESSES=${PROCESSES:-}          # empty = one per GPU, 2 without GPUs
MAX_STUCK=${MAX_STUCK:-3}         # consecutive restarts without a newer checkpoint
RESTART_SECONDS=${RESTART_SECONDS:-2}
PYTHON=${PYTHON:-python3}

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
read_dry_run "$@"
cd "$ROOT"

gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    echo 0
  elif command -v nvidia-smi > /dev/null; then
    nvidia-smi --list-gpus 2> /dev/null | grep -c . || true
  else
    echo 0
  fi
}

GPUS=$(gpus)
if [[ -z $PROCESSES ]]; then PROCESSES=$((GPUS > 0 ? GPUS : 2)); fi
[[ $PROCESSES =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES=$PROCESSES: must be a whole number of at least 1"
if ((GPUS > 0 && PROCESSES > GPUS)); then fail "PROCESSES=$PROCESSES: must be at most $GPUS, one per GPU"; fi

# Sets COMMAND for process $1, with the coordinator at port $2.
command_of() {
  COMMAND=("$PYTHON" -m hybrid_jax.main "--config=$CONFIG" "--workdir=$WORKDIR")
  if ((PROCESSES > 1)); then
    COMMAND+=("--coordinator=127.0.0.1:$2" "--num_processes=$PROCESSES" "--process_id=$1")
  fi
  COMMAND+=("${REST[@]}")
  # Every process sees all GPUs, for direct communication between them, and uses one.
  if ((GPUS > 0)); then COMMAND=(env "JAX_LOCAL_DEVICE_IDS=$1" "${COMMAND[@]}"); fi
}

# Runs all processes. Returns 0 if all do, 2 if any does, 75 if the failed ones were all asked to stop, else 1.
all_processes() {
  local pids=() port i code worst=0
  trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM
  port=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" "$port"
    "${COMMAND[@]}" &
    pids+=($!)
    echo "local: process $i is pid ${pids[i]}" >&2
  done
  for i in "${pids[@]}"; do
    while true; do
      code=0
      wait "$i" || code=$?
      kill -0 "$i" 2> /dev/null || break
    done
    case $code:$worst in
      0:* | *:2) ;;
      2:*) worst=2 ;;
      75:0 | 75:75) worst=75 ;;
      *) worst=1 ;;
    esac
  done
  return "$worst"
}

if [[ $DRY_RUN == true ]]; then
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" PORT
    quoted "${COMMAND[@]}"
  done
  exit
fi
supervise "$WORKDIR" all_processes
