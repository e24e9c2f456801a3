"""`flowreg-gpu benchmark`: every executor on the user's machine, verified, and pyflowreg beside them."""
