"""Samples of the built-in types, for the contract suite (``pytest --ted-type NAME``)."""
