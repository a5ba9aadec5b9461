"""The drawn world: scenes, their pictures and captions, and the oracle that reads a picture back."""
