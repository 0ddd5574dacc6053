"""What every job that computes needs: ranks, device, gradients, checkpoints, saving, host memory."""
