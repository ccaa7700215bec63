#!/usr/bin/env bash
# Trains on spot TPUs, one slice or several; requests them again after each preemption until the run has ended.
#
#   launch/queued_resources.sh [--dry_run] run [FLAG...]   requests TPUs, waits, requests again, deletes them at the end
#   launch/queued_resources.sh [--dry_run] status          shows the state of the request and the newest checkpoints
#   launch/queued_resources.sh [--dry_run] logs            follows the first host's output
#   launch/queued_resources.sh [--dry_run] delete          deletes the TPUs now; run continues the training
#
# `run` can be stopped with Ctrl-C and started again with the same command: it finds the existing request.
set -euo pipefail

NAME=${NAME:-hybrid}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-256}              # per slice
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}                # v2-alpha-tpuv6e, v2-alpha-tpuv5, tpu-ubuntu2204-base (v4)
SLICES=${SLICES:-1}
TIER=${TIER:-spot}                                     # spot, reserved or best-effort; empty = on demand
NETWORK=${NETWORK:-default}
CONFIG=${CONFIG:-configs/imagenet64.py}
WORKDIR=${WORKDIR:-}                                   # gs://BUCKET/runs/NAME
DATA=${DATA:-}                                         # gs://BUCKET/data; empty = nothing to copy
MAX_STUCK=${MAX_STUCK:-3}                              # consecutive restarts without a newer checkpoint
POLL_SECONDS=${POLL_SECONDS:-60}

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
trap - TERM INT
read_dry_run "$@"

QR=(gcloud compute tpus queued-resources)
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
state() { "${QR[@]}" describe "$NAME" "--zone=$ZONE" --format='value(state.state)' 2> /dev/null || echo ABSENT; }
stored_steps() { gcloud storage ls "$WORKDIR/checkpoints/" 2> /dev/null | sed -n 's:.*/\([0-9]\{1,\}\)/$:\1:p' | sort -n; }
exit_code() { gcloud storage cat "$WORKDIR/launch_exit_code" 2> /dev/null || true; }

# Prints the startup script of each host, which runs as root.
startup() {
  cat << END
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root
cd /root
rm -rf hybrid_jax && mkdir hybrid_jax
gcloud storage cp $WORKDIR.code.tar.gz - | tar xz -C hybrid_jax
exec $(quoted env "WORKDIR=$WORKDIR" "DATA=$DATA" "MAX_STUCK=$MAX_STUCK" bash hybrid_jax/launch/host.sh "--config=$CONFIG" "$@") > /var/log/hybrid_jax.log 2>&1
END
}

ask() {
  local nodes=("--node-id=$NAME") tier=()
  if ((SLICES > 1)); then nodes=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
  if [[ -n $TIER ]]; then tier=("--$TIER"); fi
  run "${QR[@]}" create "$NAME" "${nodes[@]}" "--zone=$ZONE" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=$RUNTIME" "--network=$NETWORK" "${tier[@]}" --scopes=cloud-platform \
    "--metadata-from-file=startup-script=$STARTUP"
}

give_back() { run "${QR[@]}" delete "$NAME" "--zone=$ZONE" --force --quiet; }

follow() {
  local code now newest
  while true; do
    code=$(exit_code)
    if [[ -n $code ]]; then
      echo "the run has ended with exit code $code; deleting the TPUs"
      give_back
      return "$code"
    fi
    now=$(state)
    case $now in
      ABSENT | FAILED | SUSPENDED)
        newest=$(stored_steps | tail -n 1)
        gets_on "${newest:--1}" || fail "no newer checkpoint in $WORKDIR after $MAX_STUCK more requests: giving up"
        echo "request $NAME: $now, newest checkpoint ${newest:-none}; requesting TPUs"
        if [[ $now != ABSENT ]]; then give_back; fi
        ask
        ;;
      *) echo "request $NAME: $now" ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

command=${REST[0]:-help}
set -- "${REST[@]:1}"
case $command in
  run)
    need WORKDIR
    need_address WORKDIR
    STARTUP="${TMPDIR:-/tmp}/hybrid_jax_startup_$NAME.sh"
    if [[ $DRY_RUN == true ]]; then
      pack "$WORKDIR.code.tar.gz"
      echo "# $STARTUP:"
      startup "$@"
      echo "# then, after each preemption:"
      ask
      echo "# at the end:"
      give_back
      exit
    fi
    startup "$@" > "$STARTUP"
    if [[ $(state) == ABSENT ]]; then
      pack "$WORKDIR.code.tar.gz"
      # Left by an earlier run.
      gcloud storage rm "$WORKDIR/launch_exit_code" > /dev/null 2>&1 || true
    fi
    STATE_FILE=$(mktemp)
    trap 'rm -f "$STATE_FILE"' EXIT
    follow
    ;;
  status)
    need WORKDIR
    if [[ $DRY_RUN == true ]]; then
      run "${QR[@]}" describe "$NAME" "--zone=$ZONE" --format='value(state.state)'
      run gcloud storage ls "$WORKDIR/checkpoints/"
    else
      echo "request $NAME: $(state); checkpoints: $(stored_steps | tail -n 3 | tr '\n' ' ')"
    fi
    ;;
  logs)
    node=$NAME
    if ((SLICES > 1)); then node=$NAME-0; fi
    run gcloud compute tpus tpu-vm ssh "$node" "--zone=$ZONE" --worker=0 --command="sudo tail -n 100 -F /var/log/hybrid_jax.log"
    ;;
  delete) give_back ;;
  help | --help) usage ;;
  *) fail "$command: must be run, status, logs or delete" ;;
esac
