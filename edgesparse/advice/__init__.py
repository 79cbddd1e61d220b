"""Answers before and after compiling: why a layer is as fast as it is, what sparsity would bring, what it costs."""
