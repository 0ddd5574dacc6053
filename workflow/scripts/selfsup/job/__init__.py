"""How a job behaves on its machine: place among ranks, lock, ledger, stops, watchdog. Imports no torch.

What can be refused is refused before torch is loaded, so that a retry which has nothing to do ends within a second.
"""
