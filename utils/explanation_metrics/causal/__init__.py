"""What the detector loses and what its map says, put side by side: SaCo, and agreement with patch transplant."""
