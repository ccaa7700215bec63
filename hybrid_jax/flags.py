"""The flags of the command line."""

from absl import flags
from ml_collections import config_flags

MODES = ("data", "train", "eval", "embed", "sample", "compare", "config", "compile")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the experiment, for example configs/quickstart.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the files of this run.")
MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
STEP = flags.DEFINE_string("step", "latest", "Checkpoint that eval, embed and sample use: latest, best, or a step.")
FORK_FROM = flags.DEFINE_string("fork_from", None, "DIR[@step]: initialise a new run with the parameters of that run.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Images to embed, or to complete with sample: a folder of images, an image, or an .npy file of uint8 images.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Output file: .npz for embed, .png for sample; by default embed.npz or sample.png in the workdir.",
)
LAYER = flags.DEFINE_string("layer", None, "Layer whose features embed writes; by default the encoder's output.")
ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What embed does with an unreadable image file.")
NUM = flags.DEFINE_integer(
    "num", None, "Number of images to sample, by default 64; with --input, completions per image, by default 1."
)
NUM_ROWS = flags.DEFINE_integer(
    "num_rows", None, "Pixel rows of the input that a completion keeps; by default the upper half."
)
NUM_PATCHES = flags.DEFINE_integer(
    "num_patches", None, "Patches of the input, in raster order, that a completion keeps; replaces --num_rows."
)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Sampling temperature; 0 = always the likeliest token.")
TOP_K = flags.DEFINE_integer("top_k", None, "Sample only from the k likeliest tokens.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Sample only from the smallest set of tokens whose probabilities sum to at least this."
)
SEED = flags.DEFINE_integer("seed", 0, "Random seed of sample.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Target hardware of compile: v5e:16x16, v5e:16x16x2 (two slices), h100:8, ..."
)
SEEDS = flags.DEFINE_string("seeds", "0,1,2,3,4", "Seeds that compare trains each arm with.")
ARMS = flags.DEFINE_string(
    "arms",
    "generative,contrastive,hybrid,generative@flops,contrastive@flops",
    "Arms that compare trains; NAME:FIELD=VALUE;FIELD=VALUE defines another hybrid.",
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Whether to run as one of several processes."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if the cluster does not provide it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, if the cluster does not provide it.")
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0, if the cluster does not provide it."
)


def _is_folder(path: str | None) -> bool:
    if path is not None and "://" in path:
        # As a path it would create a local folder, lost together with the machine.
        raise flags.ValidationError("must be a local path: mount the bucket with gcsfuse, see launch/README.md")
    return True


for _name in ("workdir", "fork_from", "input", "output"):
    flags.register_validator(_name, _is_folder)


def group() -> tuple[str, str | None, int | None, int | None]:
    """Returns --distributed, --coordinator, --num_processes and --process_id."""
    return DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value


def eval_section():
    """Returns the `eval` section of --config; None without --config."""
    return None if CONFIG.value is None else CONFIG.value.eval


def batch_size() -> int | None:
    """Returns the evaluation batch size of --config; None without --config."""
    return None if CONFIG.value is None else CONFIG.value.eval.batch_size


def draw() -> dict[str, float | int | None]:
    """Returns the sampling flags by name."""
    return {"temperature": TEMPERATURE.value, "top_k": TOP_K.value, "top_p": TOP_P.value}
