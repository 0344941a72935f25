"""The explaining of batches: subjects, passes, explanations and checks."""
