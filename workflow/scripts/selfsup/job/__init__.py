"""A job on its machine: its place among the ranks, lock, ledger, reasons to stop, watchdog. Imports no torch.

A job that must not run is refused before torch is loaded, so that a retry with nothing to do ends within a second.
"""
