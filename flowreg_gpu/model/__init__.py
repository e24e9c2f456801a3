"""What both backends share and neither computes: driver, pyramid, relaxation, tap tables, preprocessing."""
