"""Pocket World and Pocket Diffusion: the renderer, the pretraining, and the small model that ships with the kit."""
