"""Where images come from: a file is a source, under the name by which config.yaml chooses it, with a class `Source`."""
