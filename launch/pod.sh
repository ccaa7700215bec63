#!/usr/bin/env bash
# Runs in every pod of gke_jobset.yaml: copies the data, trains once. Exit code 75 = restart all pods.
set -euo pipefail

WORKDIR=${WORKDIR:?the folder of the run in the mounted bucket}
DATA=${DATA:-}                    # gs://BUCKET/PATH of the data; empty = nothing to copy
LOCAL_DATA=${LOCAL_DATA:-/tmp/data}
MAX_STUCK=${MAX_STUCK:-3}
STATE_FILE=${STATE_FILE:-$WORKDIR/launch_starts/${JOB_INDEX:-0}-${JOB_COMPLETION_INDEX:-0}}

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
mkdir -p "$(dirname "$STATE_FILE")"
if [[ -n $DATA ]]; then
  bring_data
  [[ " $* " == *" --mode=eval "* ]] || set -- "$@" "--config.data.path=$LOCAL_DATA"
fi
start_once "$WORKDIR" python -m hybrid_jax.main "--workdir=$WORKDIR" "$@"
