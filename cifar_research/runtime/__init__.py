"""The process: devices, signals, locks and checksummed files."""
