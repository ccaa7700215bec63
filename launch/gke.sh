#!/usr/bin/env bash
# Fills in gke_jobset.yaml and submits it to the cluster.
#
#   launch/gke.sh render [FLAG...]                    prints the filled-in YAML
#   launch/gke.sh [--dry_run] submit [FLAG...]        starts or continues the run (with --mode=eval: evaluates)
#   launch/gke.sh [--dry_run] logs                    follows the first pod's output
#   launch/gke.sh [--dry_run] delete                  saves and ends the run; submit continues it
set -euo pipefail

NAME=${NAME:-hybrid}
IMAGE=${IMAGE:-}                            # built from the Dockerfile with --build-arg ACCELERATOR=tpu
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}   # tpu-v6e-slice, tpu-v5p-slice, tpu-v4-podslice, tpu7x
TOPOLOGY=${TOPOLOGY:-16x16}                 # chips of one slice
HOSTS=${HOSTS:-64}                          # per slice: its chips / CHIPS
CHIPS=${CHIPS:-4}                           # per host
SLICES=${SLICES:-1}
SPOT=${SPOT:-true}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-hybrid}  # Kubernetes service account with access to the bucket
RUN_AS_USER=${RUN_AS_USER:-1000}            # 0 if only root may use the TPUs
MAX_RESTARTS=${MAX_RESTARTS:-1000}          # in total; MAX_STUCK ends a run without progress
MAX_STUCK=${MAX_STUCK:-3}                   # consecutive restarts without a newer checkpoint
CONFIG=${CONFIG:-configs/imagenet64.py}
WORKDIR=${WORKDIR:-}                        # gs://BUCKET/runs/NAME
DATA=${DATA:-}                              # gs://BUCKET/data; empty = nothing to copy

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_dry_run "$@"
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# Quotes a word for YAML.
yaml() { printf "'%s'" "${1//\'/\'\'}"; }

render() {
  local text name word
  local BUCKET FOLDER ARGS=""
  need IMAGE WORKDIR
  need_address WORKDIR
  # Used by name below.
  # shellcheck disable=SC2034
  BUCKET=$(bucket_of "$WORKDIR") FOLDER=$(path_of "$WORKDIR")
  # --mode=eval reads its config from the workdir.
  [[ " $* " == *" --mode=eval "* ]] || set -- "--config=$CONFIG" "$@"
  for word in "$@"; do ARGS+="$(yaml "$word"), "; done
  ARGS=${ARGS%, }
  # Removes comments of the template.
  text=$(grep -v '^ *#' "$HERE/gke_jobset.yaml")
  # Only spot nodes have this label.
  if [[ $SPOT != true ]]; then text=$(grep -v 'gke-spot: ' <<< "$text"); fi
  for name in NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS SLICES SERVICE_ACCOUNT RUN_AS_USER MAX_RESTARTS MAX_STUCK DATA BUCKET FOLDER ARGS; do
    text=${text//"\${$name}"/"${!name}"}
  done
  printf '%s\n' "$text"
}

command=${REST[0]:-help}
set -- "${REST[@]:1}"
case $command in
  render) render "$@" ;;
  submit)
    manifest="${TMPDIR:-/tmp}/hybrid_jax_$NAME.yaml"
    render "$@" > "$manifest"
    run kubectl delete jobset "$NAME" --ignore-not-found
    run kubectl apply --filename "$manifest"
    ;;
  logs)
    run kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" --container=train
    ;;
  delete) run kubectl delete jobset "$NAME" ;;
  help | --help) usage ;;
  *) fail "$command: must be render, submit, logs or delete" ;;
esac
