"""Pretraining: the step, the loop, the segments, health figures, and reports."""
