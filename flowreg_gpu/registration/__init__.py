"""Recordings: reference, start flow, the loop over batches, files, and what came out."""
