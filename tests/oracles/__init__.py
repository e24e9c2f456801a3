"""Independent, plain implementations in float64 that several tests compare with; one module a subject."""
