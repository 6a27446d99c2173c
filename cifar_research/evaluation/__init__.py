"""What a finished run is held against: scores, calibration, corruptions, another run."""
