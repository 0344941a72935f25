"""Faces in photographs and videos: found, aligned as the benchmarks align them, followed from frame to frame."""
