#!/usr/bin/env bash
# Trains on a Cloud TPU VM (one host or a multi-host slice), controlled from your machine.
#
#   launch/tpu_vm.sh [--dry_run] create            creates the TPU
#   launch/tpu_vm.sh [--dry_run] firewall          once per network: opens the port between hosts
#   launch/tpu_vm.sh [--dry_run] start [FLAG...]   uploads the checkout, trains on all hosts; also continues a run
#   launch/tpu_vm.sh [--dry_run] logs              follows the first host's output
#   launch/tpu_vm.sh [--dry_run] stop              saves and ends the run; start continues it
#   launch/tpu_vm.sh [--dry_run] eval [FLAG...]    evaluates the newest checkpoint on all hosts, in the foreground
#   launch/tpu_vm.sh [--dry_run] delete            deletes the TPU, which is billed until then
set -euo pipefail

NAME=${NAME:-hybrid}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-8}                # v6e-8, v5p-8, v4-8, ...
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}                # v2-alpha-tpuv6e, v2-alpha-tpuv5, tpu-ubuntu2204-base (v4)
NETWORK=${NETWORK:-default}
CONFIG=${CONFIG:-configs/imagenet64.py}
WORKDIR=${WORKDIR:-}                                   # gs://BUCKET/runs/NAME
DATA=${DATA:-}                                         # gs://BUCKET/data; empty = nothing to copy
MAX_STUCK=${MAX_STUCK:-3}                              # consecutive restarts without a newer checkpoint

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_dry_run "$@"

TPU=(gcloud compute tpus tpu-vm)
# Expanded on the hosts.
# shellcheck disable=SC2016
PID='$(cat hybrid_jax.pid 2> /dev/null || echo none)'
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
on() { run "${TPU[@]}" ssh "$NAME" "--zone=$ZONE" "--worker=$1" --command="$2"; }

# Prints the command of each host: host.sh of the uploaded checkout.
host_command() {
  quoted env "WORKDIR=$WORKDIR" "DATA=$DATA" "MAX_STUCK=$MAX_STUCK" bash hybrid_jax/launch/host.sh "$@"
}

upload() {
  need WORKDIR
  need_address WORKDIR
  pack "$WORKDIR.code.tar.gz"
  on all "if kill -0 $PID 2> /dev/null; then echo 'error: a run is active; stop it first' >&2; exit 2; fi; rm -rf hybrid_jax && mkdir hybrid_jax && gcloud storage cp $WORKDIR.code.tar.gz - | tar xz -C hybrid_jax"
}

command=${REST[0]:-help}
set -- "${REST[@]:1}"
case $command in
  create)
    run "${TPU[@]}" create "$NAME" "--zone=$ZONE" "--accelerator-type=$ACCELERATOR" "--version=$RUNTIME" \
      "--network=$NETWORK" --scopes=cloud-platform
    ;;
  firewall)
    run gcloud compute firewall-rules create "$NETWORK-hybrid-jax" "--network=$NETWORK" --allow=tcp:8482 \
      --source-ranges=10.128.0.0/9
    ;;
  start)
    upload
    # Keeps running when the connection ends.
    on all "nohup $(host_command "--config=$CONFIG" "$@") > hybrid_jax.log 2>&1 < /dev/null & echo \$! > hybrid_jax.pid"
    ;;
  logs) on 0 "tail -n 100 -F hybrid_jax.log" ;;
  stop) on all "kill -TERM $PID && tail --pid=$PID --lines=2 --follow hybrid_jax.log" ;;
  eval)
    upload
    on all "$(host_command --mode=eval "$@")"
    ;;
  delete) run "${TPU[@]}" delete "$NAME" "--zone=$ZONE" --quiet ;;
  help | --help) usage ;;
  *) fail "$command: must be create, firewall, start, logs, stop, eval or delete" ;;
esac
