"""The command `flowreg-gpu`."""
