"""Searching for tickets: settings, the training loop, several processes, and checkpoints."""

from .find import build, check_experiments, find, load_data
from .loop import accuracy, search
from .reload import load_network
from .run_folder import Interrupted, Run
from .settings import Experiment, Search, SourceNetwork

__all__ = [
    "Experiment",
    "Interrupted",
    "Run",
    "Search",
    "SourceNetwork",
    "accuracy",
    "build",
    "check_experiments",
    "find",
    "load_data",
    "load_network",
    "search",
]
