"""Bundles for the web: packages of one model, and their demo page."""
