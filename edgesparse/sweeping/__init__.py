"""Sweeps: models x recipes x targets x devices from one YAML file, each cell measured once, ending in one report."""
