"""Parts that every computing job shares: ranks, device, gradients, checkpoints, saving, host memory."""
