"""Tables: rows, verdicts, layouts. Imports no torch."""
