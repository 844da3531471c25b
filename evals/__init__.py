"""Evaluations of a pretrained encoder: torch-free values whose `run` does the work."""
