"""A stand-in for google.colab, for `make colab`: that it is imported is how the set-up cell knows where it runs."""
