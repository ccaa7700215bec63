#!/usr/bin/env bash
# Checks and timings of hybrid_jax on one NVIDIA GPU.
#
#   benchmarks/gpu/run.sh [--tiny] [--data=FOLDER] [STAGE...]
#
# STAGE: ceilings correctness steps torch_peer profile attention restart loop sampling (the default, in that order) and
# evaluation codec xla_flags recipe; `all` is all of them. The stage `versions` always runs first: what is missing ends the
# run there, in one line, with exit code 2. benchmarks/README.md, "One GPU", says what each stage answers.
#
#   --tiny         every stage at sizes for a CPU, to try the stages themselves
#   --data=FOLDER  images for `recipe` and `evaluation`
#
# Each stage is a process of its own with its own time limit: one that fails or hangs costs its own time only. What a
# stage finds is in $OUT/results.json as soon as it is found; a later call with the same $OUT (or $EARLIER), card, versions
# and sources measures only what is not there yet. The table comes last, from what there is.
#
#   OUT         what is kept: results.json, table.txt, log.txt, programs.tar, compiled.tar.0 .. 3; at most 8 files of 16 MiB
#   WORK        what stages leave to one another on this machine: compiled programs, trained runs
#   EARLIER     a folder with an earlier call's $OUT (default .gpu): its results, and its compiled programs
#   WHEELS      a folder of wheels that are installed into $WORK, without a network (default .whl, where there is one)
#   PYTHON      the interpreter (default python3)
#   BUDGET      seconds of all stages together (default 530)
#   CAP_STAGE   seconds of one stage, such as CAP_steps=200
#   RECIPE      changes of the recipe's config, such as RECIPE="train.total_steps=5000 seed=1"
set -u

fail() {
  echo "error: $*" >&2
  exit 2
}

OUT=$(realpath -m "${OUT:-/tmp/hybrid_jax_gpu/out}") WORK=$(realpath -m "${WORK:-/tmp/hybrid_jax_gpu/work}")
data=""
for word in "$@"; do
  [[ $word != --help ]] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit; }
  [[ $word != --data=* ]] || data=$(realpath -m "${word#--data=}")
done
cd "$(dirname "$0")/../.." || exit 2

default=(ceilings correctness steps torch_peer profile attention restart loop sampling)
others=(evaluation codec xla_flags recipe)
declare -A caps=(
  [versions]=60 [ceilings]=30 [correctness]=80 [steps]=130 [torch_peer]=70 [profile]=35 [attention]=35 [restart]=40
  [loop]=55 [sampling]=25 [evaluation]=330 [codec]=120 [xla_flags]=200 [recipe]=480
)
tiny=() stages=()
for word in "$@"; do
  case $word in
    --tiny) tiny=(--tiny) ;;
    --data=*) ;;
    all) stages+=("${default[@]}" "${others[@]}") ;;
    *)
      [[ $word != versions && -n ${caps[$word]:-} ]] || fail "$word: no such stage; there are ${default[*]} ${others[*]} all"
      stages+=("$word")
      ;;
  esac
done
((${#stages[@]})) || stages=("${default[@]}")
[[ " ${stages[*]} " != *" recipe "* || -d $data ]] || fail "--data=$data: the stage recipe needs a folder of images"

python=${PYTHON:-python3}
budget=${BUDGET:-530}
earlier=${EARLIER:-.gpu}
export OUT WORK
mkdir -p "$OUT" "$WORK" || fail "OUT=$OUT, WORK=$WORK: cannot be made"
[[ -x $(command -v "$python") ]] || fail "PYTHON=$python: no such program"
# Not the user's caches: what is compiled here is what $OUT shall hold.
export HYBRID_JAX_CACHE=$WORK/cache TFDS_DATA_DIR=$WORK/tfds JAX_COMPILATION_CACHE_DIR=$WORK/compiled
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=2 TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
((${#tiny[@]})) && export JAX_PLATFORMS=cpu

wheels=${WHEELS:-.whl}
site=()
if [[ -n ${WHEELS:-} || -d $wheels ]]; then
  ls "$wheels"/*.whl > /dev/null 2>&1 || fail "WHEELS=$wheels: no such folder, or no wheels in it"
  stamp=$(cd "$wheels" && ls -l -- *.whl)
  if [[ $(cat "$WORK/site/stamp" 2> /dev/null) != "$stamp" ]]; then
    install=("$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-compile --no-cache-dir)
    told=$("${install[@]}" --upgrade --target "$WORK/site" "$wheels"/*.whl 2>&1) || fail "WHEELS=$wheels: ${told##*$'\n'}"
    echo "$stamp" > "$WORK/site/stamp"
  fi
  export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH}
  site=(--site="$WORK/site")
fi
[[ ! -d $earlier ]] || "$python" -m benchmarks.gpu.pack --unpack="$earlier" || fail "EARLIER=$earlier: cannot be read"

# stage NAME FLAG...: one process; returns its exit code.
stage() {
  local name=$1 own=CAP_$1 left=$((budget - SECONDS)) cap code
  shift
  cap=${!own:-${caps[$name]}}
  ((cap <= left)) || cap=$left
  if ((cap < 5)); then
    echo "== $name: left out, the budget of $budget s is spent"
    return 0
  fi
  echo "== $name, at most $cap s, after $SECONDS s" | tee -a "$OUT/log.txt"
  # A run that is asked to stop has 20 s to save.
  timeout --kill-after=20 "$cap" "$python" -m "benchmarks.gpu.$name" "${tiny[@]}" "$@" 2> "$WORK/$name.err" | tee -a "$OUT/log.txt"
  code=${PIPESTATUS[0]}
  cat "$WORK/$name.err" >> "$OUT/log.txt"
  ((code == 0)) || echo "   $name: exit code $code$( ((code == 124)) && echo ", its time was up")"
  return "$code"
}

stage versions --stages="$(IFS=, && echo "${stages[*]}")" "${site[@]}"
case $? in
  0) ;;
  2)
    tail -n 1 "$WORK/versions.err" >&2
    exit 2
    ;;
  *) fail "versions: JAX does not start here: $(grep -v -i warn "$WORK/versions.err" | tail -n 1)" ;;
esac
for name in "${stages[@]}"; do
  case $name in
    recipe) stage recipe --data="$data" --changes="${RECIPE:-}" ;;
    evaluation) stage evaluation --data="$data" ;;
    *) stage "$name" ;;
  esac || grep -v -i warn "$WORK/$name.err" | tail -n 3 | cut -c1-300
done

tail -c 15000000 "$OUT/log.txt" > "$WORK/log.txt" && mv "$WORK/log.txt" "$OUT/log.txt"
"$python" -m benchmarks.gpu.pack
"$python" -m benchmarks.gpu.table | tee "$OUT/table.txt"
echo "== $SECONDS s in all; $(cd "$OUT" && echo *)"
