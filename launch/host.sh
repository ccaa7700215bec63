#!/usr/bin/env bash
# Runs on every TPU host, started by tpu_vm.sh and queued_resources.sh: mounts the bucket, installs, copies the data,
# trains or evaluates under supervise.sh. Safe to run again; finished parts are skipped.
#
#   host.sh [--dry_run] FLAG...      flags of hybrid_jax.main without --workdir
set -euo pipefail

WORKDIR=${WORKDIR:-}              # gs://BUCKET/PATH of the run
DATA=${DATA:-}                    # gs://BUCKET/PATH of the data; empty = nothing to copy
MOUNT=${MOUNT:-$HOME/bucket}      # mount point of the bucket
LOCAL_DATA=${LOCAL_DATA:-$HOME/data}
VENV=${VENV:-$HOME/venv}
EXTRAS=${EXTRAS:-tpu}
MAX_STUCK=${MAX_STUCK:-3}         # consecutive restarts without a newer checkpoint

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
read_dry_run "$@"
need WORKDIR
need_address WORKDIR

BUCKET=$(bucket_of "$WORKDIR")
FOLDER="$MOUNT/$(path_of "$WORKDIR")"

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  run sudo curl --fail --silent --show-error --output "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
  run sudo bash -c "echo 'deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs 2> /dev/null || echo jammy) main' > $list"
  run sudo apt-get update --quiet --quiet
  run sudo apt-get install --yes --quiet --quiet gcsfuse
}

# Without metadata caching, so that hosts see each other's files at once.
mount_bucket() {
  mountpoint --quiet "$MOUNT" 2> /dev/null && return
  run mkdir -p "$MOUNT"
  run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
}

# Checkpoints are completed by renaming their folder, which needs a bucket with a hierarchical namespace.
check_rename() {
  local probe
  probe="$MOUNT/.rename-$(hostname)-$$"
  mkdir -p "$probe" && echo > "$probe/file"
  if ! mv -T "$probe" "$probe-renamed" 2> /dev/null; then
    rm -r "$probe"
    fail "gs://$BUCKET cannot rename folders: create it with --enable-hierarchical-namespace, see launch/README.md"
  fi
  rm -r "$probe-renamed"
}

install_package() {
  local python=python3.11
  if [[ ! -x $VENV/bin/python ]]; then
    if command -v "$python" > /dev/null; then
      run "$python" -m venv "$VENV"
    else
      run python3 -m pip install --user --quiet uv
      run python3 -m uv venv --seed --python 3.11 "$VENV"
    fi
  fi
  run "$VENV/bin/pip" install --quiet --editable "${ROOT}[$EXTRAS]" --constraint "$ROOT/constraints.txt"
}

if [[ $DRY_RUN == true ]] || ! command -v gcsfuse > /dev/null; then install_gcsfuse; fi
mount_bucket
[[ $DRY_RUN == true ]] || check_rename
install_package
if [[ -n $DATA ]]; then
  bring_data
  # --mode=eval reads this path from the workdir.
  [[ " ${REST[*]} " == *" --mode=eval "* ]] || REST+=("--config.data.path=$LOCAL_DATA")
fi
cd "$ROOT"
COMMAND=("$VENV/bin/python" -m hybrid_jax.main "--workdir=$FOLDER" "${REST[@]}")
if [[ $DRY_RUN == true ]]; then
  quoted "$HERE/supervise.sh" "$FOLDER" "${COMMAND[@]}"
  exit
fi
code=0
supervise "$FOLDER" "${COMMAND[@]}" || code=$?
# queued_resources.sh waits for this file; not written if the host was stopped before the end of the run.
if [[ $STOPPED == false ]]; then echo "$code" > "$FOLDER/launch_exit_code" || true; fi
exit "$code"
