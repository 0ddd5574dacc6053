"""The machinery of typed settings, and the reader of their files. Imports no torch."""
