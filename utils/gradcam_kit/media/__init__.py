"""Single images and videos: faces are found, cropped, explained and drawn."""
