"""Data sets, each in three parts fixed by a seed."""

from .dataset import Dataset, Part
from .digits import digits

DATASETS = {"digits": digits}

__all__ = ["DATASETS", "Dataset", "Part", "digits"]
