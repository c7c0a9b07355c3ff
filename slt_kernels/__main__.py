"""``python -m slt_kernels`` is ``slt``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
