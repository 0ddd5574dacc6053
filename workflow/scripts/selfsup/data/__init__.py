"""Images: where they come from (`sources`), how they are kept (`store`), in which order and batches they are read."""
