"""Packaging of hf_lomdm; the tools' settings are in pyproject.toml, the tested versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = ["tensorboard>=2.18", "pyyaml>=6"]
EVAL = ["evaluate>=0.4", "lm_eval>=0.4.12", "gguf>=0.17"]
VIZ = ["matplotlib>=3.9"]
SPACE = ["gradio>=6.31,<7"]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.2",
    "ruff>=0.9",
    "peft>=0.18",
    "build>=1.2",
    "torchao>=0.17",
    "scipy>=1.13",
    "playwright>=1.49",
    *TRAIN,
    *EVAL,
    *VIZ,
    *SPACE,
]

setup(
    name="hf-lomdm",
    version="0.1.0",
    description="Learnable-order masked diffusion language models (LoMDM) for transformers and diffusers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    package_dir={"": "src"},
    packages=find_packages("src"),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.9",
        "transformers>=5.14",
        "diffusers>=0.37.1",
        "accelerate>=1.10",
        "datasets>=4",
        "huggingface-hub>=1.16",
        "numpy>=2",
        "safetensors>=0.8",
        "tqdm>=4.66.3",
    ],
    extras_require={"train": TRAIN, "eval": EVAL, "viz": VIZ, "space": SPACE, "dev": DEV},
)
