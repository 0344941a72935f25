"""Files of a data set: JSON, frames, pictures, masks, landmarks, video."""
