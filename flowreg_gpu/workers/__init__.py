"""Worker processes and shared memory for any function of a frame; loads NumPy and the standard library only."""
