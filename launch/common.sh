# shellcheck shell=bash
# Functions for the other scripts: printing and running commands, uploading the checkout.

DRY_RUN=${DRY_RUN:-false}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")

# Prints words, quoted for a shell.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# Runs a command, or with --dry_run only prints it.
run() {
  if [[ $DRY_RUN == true ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# need NAME...: fails if a variable is empty.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$name is empty: set it, for example $name=... $(basename "$0") ...; see the top of the script"
  done
}

bucket_of() {
  local rest=${1#gs://}
  echo "${rest%%/*}"
}

# path_of gs://BUCKET/a/b: a/b
path_of() {
  local rest=${1#gs://}
  [[ $rest == */* ]] && echo "${rest#*/}"
}

# need_address NAME...: fails if a variable is not gs://BUCKET/PATH.
need_address() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^gs://[a-z0-9._-]+/.+ ]] || fail "$name=${!name}: must be gs://BUCKET/PATH"
  done
}

# Copies what $LOCAL_DATA lacks of $DATA.
bring_data() {
  [[ $DRY_RUN == true ]] || command -v gcloud > /dev/null || fail "DATA=$DATA: there is no gcloud here to copy it with"
  run mkdir -p "$LOCAL_DATA"
  run gcloud storage rsync --recursive "$DATA" "$LOCAL_DATA"
}

# pack gs://...: uploads the last commit of the checkout.
pack() {
  git -C "$ROOT" diff --quiet HEAD || echo "note: uncommitted changes are not uploaded" >&2
  local archive="${TMPDIR:-/tmp}/hybrid_jax.tar.gz"
  run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
  run gcloud storage cp "$archive" "$1"
}

# Removes --dry_run from the arguments; the others are in REST.
REST=()
read_dry_run() {
  local word
  for word in "$@"; do
    if [[ $word == --dry_run ]]; then DRY_RUN=true; else REST+=("$word"); fi
  done
}
