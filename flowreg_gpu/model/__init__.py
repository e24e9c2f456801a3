"""What both backends use and neither computes: driver, pyramid, choice of relaxation, tap tables, preprocessing."""
