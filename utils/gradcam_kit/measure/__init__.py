"""The evaluation of maps: metrics, controls, intervals, verdict."""
