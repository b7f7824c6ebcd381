"""Pure tensor mathematics; imports torch only."""
