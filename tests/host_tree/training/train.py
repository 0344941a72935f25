"""Stands for the host's own commands: they import the detectors and go on as before."""

from detectors import DETECTOR

print(sorted(DETECTOR.data))
