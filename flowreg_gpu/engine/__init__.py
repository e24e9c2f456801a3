"""What is done with a batch of frames, on a CPU or on a device."""
