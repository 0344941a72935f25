"""Files of a dataset: JSON, frames, images, masks, landmarks."""
