"""The process: environment, signals, locks, files and errors."""
