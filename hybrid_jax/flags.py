"""The flags of the command line."""

from absl import flags
from ml_collections import config_flags

MODES = ("data", "train", "eval", "embed", "sample", "compare", "config", "compile")

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint eval, embed and sample take: latest, best, or its step.")
FORK_FROM = flags.DEFINE_string("fork_from", None, "DIR[@step]: a new run begins with that run's parameters.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "What to embed, or to complete with sample: a folder of images, an image, or an .npy of uint8 images.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The .npz that embed writes, or the .png of sample; by default embed.npz or sample.png in the workdir.",
)
LAYER = flags.DEFINE_string("layer", None, "Whose features to embed with; by default the encoder's output.")
ON_ERROR = flags.DEFINE_enum("on_error", "stop", ["stop", "skip"], "What embed does at an unreadable image file.")
NUM = flags.DEFINE_integer(
    "num", None, "Images to sample, by default 64; completions of each image of --input, by default 1."
)
NUM_ROWS = flags.DEFINE_integer("num_rows", None, "Pixel rows that a completion keeps; by default the upper half.")
NUM_PATCHES = flags.DEFINE_integer("num_patches", None, "Patches, in raster order, that a completion keeps instead.")
TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Divides the log-probabilities of sample; 0 = always the likeliest."
)
TOP_K = flags.DEFINE_integer("top_k", None, "Sample only from the k likeliest tokens.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Sample only from the fewest tokens whose probabilities sum to at least this."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of sample.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "What compile compiles for: v5e:16x16, v5e:16x16x2 (two slices), h100:8, ..."
)
SEEDS = flags.DEFINE_string("seeds", "0,1,2,3,4", "Seeds that compare judges by.")
ARMS = flags.DEFINE_string(
    "arms",
    "generative,contrastive,hybrid,generative@flops,contrastive@flops",
    "What compare trains: these, or NAME:FIELD=VALUE;FIELD=VALUE for another hybrid.",
)
DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], "Whether to join other processes.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster says it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run, likewise.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, likewise.")


def _is_folder(path: str | None) -> bool:
    if path is not None and "://" in path:
        # Taken for a folder it would be one of this machine, lost with it.
        raise flags.ValidationError("must be a path: mount the bucket with gcsfuse, see launch/README.md")
    return True


for _name in ("workdir", "fork_from", "input", "output"):
    flags.register_validator(_name, _is_folder)


def group() -> tuple[str, str | None, int | None, int | None]:
    """Returns what says which processes belong together."""
    return DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value


def eval_section():
    """Returns the `eval` section of --config, None without it."""
    return None if CONFIG.value is None else CONFIG.value.eval


def batch_size() -> int | None:
    """Returns how many images of a batch --config asks for, None without it."""
    return None if CONFIG.value is None else CONFIG.value.eval.batch_size


def draw() -> dict[str, float | int | None]:
    """Returns how tokens are drawn."""
    return {"temperature": TEMPERATURE.value, "top_k": TOP_K.value, "top_p": TOP_P.value}
