"""The operations of the flow model on NVIDIA GPUs."""
