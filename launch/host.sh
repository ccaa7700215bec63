#!/usr/bin/env bash
# What every TPU host does, called by tpu_vm.sh and queued_resources.sh: mounts the bucket, installs, brings the data,
# trains or evaluates under supervise.sh. Safe to run again; what is done already is left.
#
#   host.sh [--dry_run] FLAG...      flags of hybrid_jax.main without --workdir
set -euo pipefail

WORKDIR=${WORKDIR:-}              # gs://BUCKET/PATH of the run
DATA=${DATA:-}                    # gs://BUCKET/PATH of the data; empty = none to bring
MOUNT=${MOUNT:-$HOME/bucket}      # where the bucket is mounted
LOCAL_DATA=${LOCAL_DATA:-$HOME/data}
VENV=${VENV:-$HOME/venv}
EXTRAS=${EXTRAS:-tpu}
MAX_STUCK=${MAX_STUCK:-3}         # restarts in a row without a newer checkpoint

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

# No metadata is cached: a host must see at once what another one wrote.
mount_bucket() {
  mountpoint --quiet "$MOUNT" 2> /dev/null && return
  run mkdir -p "$MOUNT"
  run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
}

# A checkpoint becomes whole by renaming its folder, which only buckets with a hierarchical namespace do.
check_rename() {
  local probe
  probe="$MOUNT/.rename-$(hostname)-$$"
  mkdir -p "$probe" && echo > "$probe/file"
  if ! mv -T "$probe" "$probe-renamed" 2> /dev/null; then
    rm -r "$probe"
    fail "gs://$BUCKET cannot rename folders: make it with --enable-hierarchical-namespace, see launch/README.md"
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
  # Evaluation takes everything but its own settings from the workdir, this path too.
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
# What queued_resources.sh waits for. A host that was told to stop has not ended the run.
if [[ $STOPPED == false ]]; then echo "$code" > "$FOLDER/launch_exit_code" || true; fi
exit "$code"
