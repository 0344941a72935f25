"""Photographs, faces, videos and single images."""
