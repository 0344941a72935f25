"""Evaluation of the maps: metrics, controls, intervals, verdict."""
