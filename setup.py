"""What pyro_vae is and needs. Build system and tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"', (here / "pyro_vae" / "__init__.py").read_text(), re.MULTILINE)

setup(
    name="pyro-vae",
    version=version.group(1),
    description="Variational autoencoders as Pyro programs, beside their hand-coded twin",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["pyro_vae*"]),
    package_data={"pyro_vae": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.4",
        "pyro-ppl>=1.9.1",
        "torchvision>=0.19",
        "numpy>=1.26",
        "matplotlib>=3.9",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "arviz-stats>=0.5",
        "safetensors>=0.4.4",
        "filelock>=3.29.5",  # earlier ones remove the lock when it is released, so that two processes could hold it
        "pyyaml>=6",
        "tqdm>=4.66",
        "pillow>=10.1",  # 10.0 leaves some rotated TIFFs as they are
        "zuko>=1.5",
    ],
    extras_require={
        "bench": ["numpyro>=0.15"],
        "distributed": ["lightning-fabric>=2.4"],
        "tensorboard": ["tensorboard>=2.16"],
        "mlflow": ["mlflow-skinny>=2.12"],
        "test": [
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "mpmath>=1.3",
            "lightning-fabric>=2.4",
        ],
        "lint": ["ruff>=0.8", "mypy>=1.11", "import-linter>=2", "types-PyYAML", "types-tqdm", "types-setuptools"],
    },
    entry_points={"console_scripts": ["pyro-vae = pyro_vae.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
