"""The pretraining of Pocket Diffusion and Pocket CLIP, their acceptance thresholds and contact sheets."""
