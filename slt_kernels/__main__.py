"""``python -m slt_kernels`` is ``slt``."""

from .cli import main

raise SystemExit(main())
