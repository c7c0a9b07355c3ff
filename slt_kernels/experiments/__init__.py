"""Experiments with the package's layers: data sets, networks, the search for a ticket, and sweeps over settings."""
