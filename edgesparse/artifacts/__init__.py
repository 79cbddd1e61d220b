"""The compiled form on disk: manifest, samples, packing, and the proof that it is right."""
