"""Prints a requirements file of the package and of some of its extras, without the package itself.

python .ci/requirements.py test

Needs Python 3.11, for tomllib.
"""

import re
import sys
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def required(extras: list[str]) -> set[str]:
    """Those of the extras, and of the extras that they name in turn."""
    found = set()
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            found |= required(own[1].split(",")) if own else {requirement}
    return found


print("\n".join(sorted({*project["dependencies"], *required(sys.argv[1:])})))
