"""Measurements on a GPU: what `benchmarks.gpu_loss` and `benchmarks.gpu_train` are made of."""
