"""Colab's kernels have imported google.colab before the first cell; so has every Python of `make colab`."""

import google.colab  # noqa: F401
