"""From kernels and tables to what a device loads: object code, linking, through the cache."""
