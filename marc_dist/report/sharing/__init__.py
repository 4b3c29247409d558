"""Encoders for other people: the model card, and the folder for the Hugging Face Hub."""
