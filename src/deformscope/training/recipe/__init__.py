"""Recipes: everything that decides a training run, as typed records read from YAML."""
