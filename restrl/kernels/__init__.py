"""The GPU kernels (Triton): one module per operation, `restrl.kernels.<module>`; see docs/kernels.md.

Importing a module of this package imports triton; `restrl.ops` does so only for tensors on a GPU. An
installed restrl has the modules beside this file. In the source tree they lie in the top-level folder
kernels/, which has no `__init__.py` of its own: transformers does `import kernels` and means a package of
another project.
"""

from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2]
if (_SOURCE / "pyproject.toml").is_file() and (_SOURCE / "kernels" / "rows.py").is_file():
    __path__.append(str(_SOURCE / "kernels"))
